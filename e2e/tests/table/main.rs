//! The conformance table: many situations and sequences of changes, each a full matrix of real connections between nine
//! pods on two nodes, judged against the oracle. Needs root.
//!
//! | file | what it is |
//! |---|---|
//! | `situations` | policies, and what they are for (pure) |
//! | `sequences` | changes, one after the other (pure) |
//! | `grid` | the pods, what is said of them to API server and oracle alike, and the matrices (IO) |
//! | `cell` | one connection, and what each judge says of it (pure) |
//! | `read` | policies as the oracle sees them: read without the product's own reader (pure) |
#![allow(clippy::unwrap_used, reason = "a panic fails the test, and says where")]

mod cell;
mod grid;
mod read;
mod sequences;
mod situations;

use std::process::ExitCode;

use durward_e2e::{Bed, Config, Result, Test, install, run};
use grid::Grid;

fn main() -> ExitCode {
    let tests = [
        Test { name: "every_situation_is_as_the_oracle_says", run: situations_hold },
        Test { name: "every_step_of_every_sequence_is_as_the_oracle_says", run: sequences_hold },
    ];
    run(Config::new("table").nodes(2), |bed| install(bed, &[]), &tests)
}

fn situations_hold(bed: &Bed) -> Result<()> {
    let mut grid = Grid::new(bed)?;
    grid.holds("no policy")?;
    let situations = situations::all(&grid);
    assert!(situations.len() >= 60, "{} situations", situations.len());
    for situation in situations {
        for policy in &situation.policies {
            grid.policy(policy)?;
        }
        grid.holds(situation.name)?;
        grid.no_policies()?;
    }
    grid.holds("no policy any more")
}

fn sequences_hold(bed: &Bed) -> Result<()> {
    let mut grid = Grid::new(bed)?;
    let sequences = sequences::all();
    assert!(sequences.len() >= 15, "{} sequences", sequences.len());
    for sequence in sequences {
        for (number, change) in sequence.changes.iter().enumerate() {
            grid.change(change)?;
            grid.holds(&format!("{}, step {}", sequence.name, number + 1))?;
        }
        grid.no_policies()?;
        grid.original_labels(&sequence.changes)?;
    }
    Ok(())
}
