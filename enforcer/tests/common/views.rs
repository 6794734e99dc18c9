//! Views, written short.

use std::net::IpAddr;

use durward_proto::{
    Act, AtomId, Attribution, Digest, Direction, NodeView, Pod, PodUid, Policy, PolicyList, PortKey, Row,
    Set, SetId, Step, Verdict,
};

use super::node;

/// A view of these pods, by the last byte of their address. Nothing isolates them.
pub fn view(pods: &[u8]) -> NodeView {
    let pod = |n: &u8| {
        let pod = Pod {
            namespace: "default".into(),
            name: format!("pod-{n}").into(),
            addresses: vec![IpAddr::from([10, 77, 0, *n])],
            config_hash: None,
            ingress: None,
            egress: None,
            denies_logged: false,
        };
        (PodUid::from(node::uid(*n).as_str()), pod)
    };
    NodeView { pods: pods.iter().map(pod).collect(), ..NodeView::default() }
}

/// Lets only some addresses reach a pod: `policy` is the name of the policy that says so.
pub fn isolate(view: &mut NodeView, pod: u8, policy: &str, from: &[[u8; 4]]) {
    isolate_logged(view, pod, policy, from, false);
}

/// The same; `logged` is whether the policy asks for its verdicts to be logged.
pub fn isolate_logged(view: &mut NodeView, pod: u8, policy: &str, from: &[[u8; 4]], logged: bool) {
    let attribution = Attribution::new([Policy { namespace: "default".into(), name: policy.into(), logged }]);
    let row = |verdict| Row::uniform(Act { verdict, attribution: attribution.id() });
    let (set, atom) = (SetId(Digest::of("set", [policy])), AtomId(Digest::of("atom", from)));
    let rows = if from.is_empty() { [].into() } else { [(atom, row(Verdict::Allow))].into() };
    let content = Set { direction: Direction::Ingress, base: row(Verdict::Deny), rows };
    view.sets.insert(set, content);
    view.attributions.insert(attribution.id(), attribution.into());
    view.addresses.extend(from.iter().map(|address| (IpAddr::from(*address), atom)));
    if let Some(pod) = view.pods.get_mut(&PodUid::from(node::uid(pod).as_str())) {
        pod.ingress = Some(set);
    }
}

/// Lets nobody reach a pod. That is attributed as to very many policies: to a list that is made of others.
pub fn isolate_by_all(view: &mut NodeView, pod: u8, policies: [&[&str]; 2]) {
    let policy = |name: &&str| Policy { namespace: "default".into(), name: (*name).into(), logged: false };
    let parts = policies.map(|names| PolicyList::from(Attribution::new(names.iter().map(policy))));
    let all = PolicyList::of_parts(parts.iter().map(PolicyList::id));
    let base = Row::uniform(Act { verdict: Verdict::Deny, attribution: all.id() });
    let set = SetId(Digest::of("set", policies.concat()));
    view.sets.insert(set, Set { direction: Direction::Ingress, base, rows: [].into() });
    view.attributions.extend(parts.into_iter().chain([all]).map(|list| (list.id(), list)));
    if let Some(pod) = view.pods.get_mut(&PodUid::from(node::uid(pod).as_str())) {
        pod.ingress = Some(set);
    }
}

/// Gives the rows of a policy's set this many bounds, allowing and denying by turns. An odd number allows what
/// comes after the last.
pub fn scatter(view: &mut NodeView, policy: &str, bounds: u16) {
    let set = view.sets.get_mut(&SetId(Digest::of("set", [policy]))).unwrap();
    let (deny, allow) = (set.base.steps()[0].act, set.rows.values().next().unwrap().steps()[0].act);
    let start = |n: u16| if n == 0 { PortKey::MIN } else { PortKey::new(6, n) };
    let step = |n: u16| Step { start: start(n), act: if n.is_multiple_of(2) { allow } else { deny } };
    let row = Row::new((0..bounds).map(step).collect()).unwrap();
    set.rows.values_mut().for_each(|of| of.clone_from(&row));
}
