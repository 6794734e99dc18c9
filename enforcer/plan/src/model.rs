//! The model of the data path: it takes steps as the kernel's maps do, and judges as its program does. Pure.
//!
//! The enforcer also keeps its picture of the kernel by it, step by step, so that it never has to read
//! the maps back while it runs.

use std::net::IpAddr;

use durward_proto::{Direction, PortKey};

use crate::kernel::{Access, Act, Kernel, Row};
use crate::{Endpoint, Step};

/// What happens to a packet that opens a connection of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing isolates the endpoint in this direction.
    Free,
    /// A row says so.
    By(Act),
    /// The endpoint is closed, or not there, or something that its word leads to is missing.
    Refused,
}

impl Kernel {
    /// Takes one step.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::PutRow(key, row) => drop(self.rows.insert(*key, row.clone())),
            Step::PutAddress(address, atom) => drop(self.addresses.insert(*address, *atom)),
            Step::PutBlock(block, atom) => drop(self.blocks.insert(*block, *atom)),
            Step::Bind(ifindex, endpoint) => drop(self.endpoints.insert(*ifindex, endpoint.clone())),
            Step::Refresh(ifindex, endpoint) => {
                if let Some(held) = self.endpoints.get_mut(ifindex) {
                    *held = Endpoint { words: held.words, ..endpoint.clone() };
                }
            }
            Step::SetWord(ifindex, direction, word) => {
                if let Some(held) = self.endpoints.get_mut(ifindex) {
                    held.words[*direction as usize] = *word;
                }
            }
            Step::Unbind(ifindex) => drop(self.endpoints.remove(ifindex)),
            Step::Grace => {}
            Step::RemoveAddress(address) => drop(self.addresses.remove(address)),
            Step::RemoveBlock(block) => drop(self.blocks.remove(block)),
            Step::RemoveRow(key) => drop(self.rows.remove(key)),
            Step::PutFrontend(frontend) => drop(self.frontends.insert(*frontend)),
            Step::RemoveFrontend(frontend) => drop(self.frontends.remove(frontend)),
        }
    }

    /// Judges a packet that opens a connection: word, set, atom, row.
    pub fn judge(&self, ifindex: u32, direction: Direction, remote: IpAddr, key: PortKey) -> Judgement {
        let Some(endpoint) = self.endpoints.get(&ifindex) else { return Judgement::Refused };
        let word = match endpoint.access {
            Access::Closed => return Judgement::Refused,
            Access::Open => return Judgement::Free,
            Access::Judged => endpoint.word(direction),
        };
        if word.set == 0 {
            return Judgement::Free;
        }
        let act = self.row(word.set, self.atom(remote)).and_then(|row| search(row, key));
        act.map_or(Judgement::Refused, Judgement::By)
    }
}

fn search(row: &Row, key: PortKey) -> Option<Act> {
    let after = row.partition_point(|bound| bound.start <= key.bits());
    row.get(after.checked_sub(1)?).map(|bound| bound.act)
}
