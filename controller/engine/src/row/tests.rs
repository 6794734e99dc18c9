use durward_proto::Direction;

use super::*;
use crate::cluster::Cluster;
use crate::list::Isolating;
use crate::object::Protocol;
use crate::sample::{ingress, range, rule};

/// The base row of a set of so many policies, each of which permits ports from one of its own on to everybody; and
/// how many parts and attributions there are then, with nothing let go of yet.
fn base_row(policies: u16, limits: Limits) -> (RowState, usize, usize) {
    let (mut cluster, mut rules) = (Cluster::default(), Rules::new(&limits));
    let bodies: Vec<_> = (0..policies)
        .map(|n| {
            let policy =
                ingress(&format!("a/policy-{n}"), "", [rule([], [range(Protocol::Tcp, 2 * n, u16::MAX)])]);
            let id = rules.policy(&mut cluster, policy.key.clone());
            let enforced = rules.compile(&mut cluster, &limits, id, policy);
            Isolating::One(enforced.bodies[0].expect("it isolates on ingress"))
        })
        .collect();
    let list = rules.union(&bodies).expect("it has policies");
    let mut sets = Sets::new(limits);
    let set = sets.set(&mut rules, Direction::Ingress, list, Some(&[]));
    let row = sets.row_state(&mut rules, set, &[]);
    (row, sets.parts.len(), sets.attributions.len())
}

#[test]
fn a_row_with_too_many_mentions_is_stopped_where_it_is_and_nothing_of_it_is_kept() {
    let policies = 400;
    let (row, parts, attributions) = base_row(policies, Limits::default());
    assert!(row.rest.is_some_and(|rest| rest.overflow.is_none() && !rest.parts.is_empty()));
    assert_eq!(row.ports, u32::from(policies));
    assert!(parts > 0 && attributions > usize::from(policies));
    let limit = 5_000;
    let (row, parts, denied) = base_row(policies, Limits { mentions_per_row: limit, ..Limits::default() });
    let rest = row.rest.expect("it is too large");
    let fault = Fault::TooManyTogether { what: "mentions of policies", limit };
    assert_eq!(rest.overflow, Some((Key::new("a", "policy-0"), fault)));
    assert!(rest.parts.is_empty());
    assert!(row.ports < u32::from(policies), "all its branches were looked at");
    assert_eq!(parts, 0);
    // Those of the set itself.
    assert!(denied < attributions - usize::from(policies), "{denied} of {attributions}");
}
