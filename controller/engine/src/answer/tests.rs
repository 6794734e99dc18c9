use super::*;
use crate::Limits;
use crate::cluster::Cluster;
use crate::rules::Rules;
use crate::sample::{egress, pods, rule};

#[test]
fn atoms_are_taken_by_the_terms_that_are_asked_for_only() {
    let (mut cluster, mut rules, mut sets) =
        (Cluster::default(), Rules::new(&Limits::default()), Sets::default());
    let peers = (0..4).map(|n| pods(&format!("app=a{n}")));
    let policy = egress("a/policy", "", [rule(peers, [])]);
    let id = rules.policy(&mut cluster, policy.key.clone());
    let enforced = rules.compile(&mut cluster, &Limits::default(), id, policy);
    let body = &rules.bodies[enforced.bodies[1].expect("it isolates on egress")];
    let terms: Vec<_> = sorted(body.rules[0].peers.iter().flatten().copied().collect());
    let element = |n: usize| (terms[n], 0);
    let both = sets.atom(&mut rules, &[element(0), element(2)]);
    let others: Vec<_> = [1, 3].map(|n| sets.atom(&mut rules, &[element(n)])).into();
    let atoms = || [both].into_iter().chain(others.iter().copied());
    let of = |wanted: &[TermId]| by_terms(&sets, atoms(), |term| wanted.contains(&term));
    assert_eq!(of(&terms[2..]), [(element(2), both), (element(3), others[1])]);
    assert_eq!(of(&terms).len(), 4);
    assert_eq!(of(&[]), []);
}
