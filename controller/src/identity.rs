//! Who has an address, for the log. Pure: the clock comes with each call.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use durward_engine::object::Key;
use durward_proto::{Identity, PodName, PodUid, Workload};

/// How long it is remembered that an address was given up: longer than any line of the log is late.
const REMEMBER_RELEASE_MS: i64 = 15 * 60 * 1000;
/// How many such memories are kept at most; the oldest go first.
const MAX_RELEASES: usize = 100_000;

/// A pod, as far as its name in the log is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodIdentity {
    /// Its UID: another pod can have had its name.
    pub(crate) uid: PodUid,
    /// Its addresses; none if it has none of its own, or has given them up.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its controller.
    pub(crate) owner: Option<Workload>,
    /// Since when its kubelet has known of it: its addresses cannot have been its own before.
    pub(crate) started_ms: i64,
}

/// All pods by their addresses, and the workloads behind them.
#[derive(Debug)]
pub(crate) struct Identities {
    since_ms: i64,
    pods: HashMap<Key, PodIdentity>,
    holders: HashMap<IpAddr, Vec<(Key, i64)>>,
    owners: HashMap<(Arc<str>, Workload), Workload>,
    released: HashMap<IpAddr, i64>,
    releases: VecDeque<(IpAddr, i64)>,
}

impl Identities {
    /// Knows nothing yet, and nothing of what was before `now_ms`.
    pub(crate) fn new(now_ms: i64) -> Self {
        Self {
            since_ms: now_ms,
            pods: HashMap::new(),
            holders: HashMap::new(),
            owners: HashMap::new(),
            released: HashMap::new(),
            releases: VecDeque::new(),
        }
    }

    /// A pod is there, or has changed.
    pub(crate) fn put_pod(&mut self, key: Key, pod: PodIdentity, now_ms: i64) {
        if self.pods.get(&key).is_some_and(|before| before.uid != pod.uid) {
            self.remove_pod(&key, now_ms);
        }
        let before = self.pods.get(&key).map(|pod| pod.addresses.clone()).unwrap_or_default();
        for gone in before.iter().filter(|address| !pod.addresses.contains(address)) {
            self.release(*gone, &key, now_ms);
        }
        for new in pod.addresses.iter().filter(|address| !before.contains(address)) {
            let since_ms = pod.started_ms.max(self.released.get(new).copied().unwrap_or(i64::MIN));
            self.holders.entry(*new).or_default().push((key.clone(), since_ms));
        }
        self.pods.insert(key, pod);
    }

    /// A pod is gone.
    pub(crate) fn remove_pod(&mut self, key: &Key, now_ms: i64) {
        for address in self.pods.remove(key).map(|pod| pod.addresses).unwrap_or_default() {
            self.release(address, key, now_ms);
        }
    }

    /// The owner of a ReplicaSet or a Job is known, or it has none.
    pub(crate) fn put_owner(&mut self, namespace: Arc<str>, owned: Workload, owner: Option<Workload>) {
        match owner {
            Some(owner) => self.owners.insert((namespace, owned), owner),
            None => self.owners.remove(&(namespace, owned)),
        };
    }

    /// Who has the address.
    pub(crate) fn identify(&self, address: IpAddr, now_ms: i64) -> Identity {
        let nobody = |since_ms| Identity { pod: None, since_ms };
        match self.holders.get(&address).map(Vec::as_slice) {
            None | Some([]) => nobody(self.released.get(&address).copied().unwrap_or(self.since_ms)),
            Some([(key, since_ms)]) => {
                let Key { namespace, name } = key.clone();
                let pod = PodName { namespace, name, workload: self.workload(key).cloned() };
                Identity { pod: Some(pod), since_ms: *since_ms }
            }
            // Two pods claim it: whose packet it was, nobody can say.
            Some(_) => nobody(now_ms),
        }
    }

    /// The workload of a pod: its controller, or what controls that.
    fn workload(&self, key: &Key) -> Option<&Workload> {
        let owner = self.pods.get(key)?.owner.as_ref()?;
        Some(self.owners.get(&(key.namespace.clone(), owner.clone())).unwrap_or(owner))
    }

    fn release(&mut self, address: IpAddr, key: &Key, now_ms: i64) {
        if let Some(holders) = self.holders.get_mut(&address) {
            holders.retain(|(holder, _)| holder != key);
            if holders.is_empty() {
                self.holders.remove(&address);
            }
        }
        self.released.insert(address, now_ms);
        self.releases.push_back((address, now_ms));
        while let Some(&(address, at_ms)) = self.releases.front()
            && (self.releases.len() > MAX_RELEASES || at_ms + REMEMBER_RELEASE_MS < now_ms)
        {
            self.releases.pop_front();
            // A later release of the same address is remembered on its own account.
            if self.released.get(&address) == Some(&at_ms) {
                self.released.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("shop", name)
    }

    fn owner(kind: &str, name: &str) -> Workload {
        Workload { kind: kind.into(), name: name.into() }
    }

    fn pod(addresses: &[&str], started_ms: i64, owner: Option<Workload>) -> PodIdentity {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        PodIdentity { uid: PodUid::from(&*format!("uid-{started_ms}")), addresses, owner, started_ms }
    }

    fn named(name: &str, workload: Option<(&str, &str)>, since_ms: i64) -> Identity {
        let workload = workload.map(|(kind, name)| owner(kind, name));
        let pod = PodName { namespace: "shop".into(), name: name.into(), workload };
        Identity { pod: Some(pod), since_ms }
    }

    fn nobody(since_ms: i64) -> Identity {
        Identity { pod: None, since_ms }
    }

    #[test]
    fn a_pod_is_named_with_the_workload_behind_its_controller() {
        let (address, mut known) = ("10.0.0.1".parse().unwrap(), Identities::new(0));
        known.put_pod(key("cart-1"), pod(&["10.0.0.1"], 100, Some(owner("ReplicaSet", "cart"))), 200);
        assert_eq!(known.identify(address, 300), named("cart-1", Some(("ReplicaSet", "cart")), 100));
        let deployment = owner("Deployment", "carts");
        known.put_owner("shop".into(), owner("ReplicaSet", "cart"), Some(deployment));
        assert_eq!(known.identify(address, 300), named("cart-1", Some(("Deployment", "carts")), 100));
        known.put_owner("shop".into(), owner("ReplicaSet", "cart"), None);
        assert_eq!(known.identify(address, 300), named("cart-1", Some(("ReplicaSet", "cart")), 100));
    }

    #[test]
    fn an_address_that_changes_hands_is_the_new_pods_from_when_the_old_one_gave_it_up() {
        let (address, mut known) = ("10.0.0.1".parse().unwrap(), Identities::new(50));
        assert_eq!(known.identify(address, 60), nobody(50));
        known.put_pod(key("a"), pod(&["10.0.0.1"], 100, None), 110);
        known.put_pod(key("b"), pod(&[], 120, None), 130);
        known.remove_pod(&key("a"), 150);
        assert_eq!(known.identify(address, 160), nobody(150));
        known.put_pod(key("b"), pod(&["10.0.0.1"], 120, None), 170);
        assert_eq!(known.identify(address, 180), named("b", None, 150));
    }

    #[test]
    fn an_address_that_two_pods_claim_is_nobodys() {
        let (address, mut known) = ("10.0.0.1".parse().unwrap(), Identities::new(0));
        known.put_pod(key("a"), pod(&["10.0.0.1"], 1, None), 2);
        known.put_pod(key("b"), pod(&["10.0.0.1"], 3, None), 4);
        assert_eq!(known.identify(address, 9), nobody(9));
        // The first completes, and so gives up its address.
        known.put_pod(key("a"), pod(&[], 1, None), 10);
        assert_eq!(known.identify(address, 11), named("b", None, 3));
    }

    #[test]
    fn a_pod_that_takes_anothers_name_is_another_pod() {
        let (address, mut known) = ("10.0.0.1".parse().unwrap(), Identities::new(0));
        known.put_pod(key("a"), pod(&["10.0.0.1"], 100, None), 110);
        known.put_pod(key("a"), pod(&["10.0.0.1"], 120, None), 130);
        assert_eq!(known.identify(address, 140), named("a", None, 130));
    }

    #[test]
    fn releases_are_forgotten_after_a_while() {
        let (address, mut known) = ("10.0.0.1".parse().unwrap(), Identities::new(0));
        for (name, now_ms) in [("a", 10), ("b", 20 + REMEMBER_RELEASE_MS)] {
            known.put_pod(key(name), pod(&[&format!("10.0.0.{}", name.len())], 1, None), now_ms);
            known.remove_pod(&key(name), now_ms);
        }
        assert_eq!(known.identify(address, 0), nobody(20 + REMEMBER_RELEASE_MS));
        assert_eq!(known.releases.len(), 1);
    }
}
