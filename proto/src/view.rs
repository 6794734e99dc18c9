//! A node's view: everything that one node needs to judge every packet of its pods. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Act, AtomId, AttributionId, Frontend, PodUid, PortKey, Row, Service, SetId};

/// Which side of a connection a pod is on, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both, in the order in which everything lists them.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// A policy as an attribution names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// The policy's namespace.
    pub namespace: Arc<str>,
    /// The policy's name.
    pub name: Arc<str>,
    /// Whether it carries `policy.network.gke.io/enable-logging: "true"`.
    pub logged: bool,
}

/// An exact list of policies: sorted, without repeats, never empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attribution(pub Arc<[Policy]>);

impl Attribution {
    /// The attribution to these policies, sorted and without repeats.
    pub fn new(policies: impl IntoIterator<Item = Policy>) -> Self {
        let mut policies: Vec<_> = policies.into_iter().collect();
        policies.sort_unstable();
        policies.dedup();
        Self(policies.into())
    }

    /// The name of this content.
    pub fn id(&self) -> AttributionId {
        let Self(policies) = self;
        AttributionId::of(policies.iter().map(|policy| (&*policy.namespace, &*policy.name, policy.logged)))
    }
}

impl AttributionId {
    /// The name of a list of policies, sorted and without repeats: of each the namespace, the name, and
    /// whether it is logged.
    pub fn of<'a>(policies: impl IntoIterator<Item = (&'a str, &'a str, bool)>) -> Self {
        let fields = policies.into_iter().flat_map(|(namespace, name, logged)| {
            let logged: &[u8] = if logged { b"1" } else { b"0" };
            [namespace.as_bytes(), name.as_bytes(), logged]
        });
        Self(crate::Digest::of("attribution", fields))
    }
}

/// The policies behind an attribution, in the lists that a view holds them in, which it shares with
/// other views and attributions: so that to remember many long lists that differ little costs little.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaves(Arc<[Attribution]>);

impl Leaves {
    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.0.iter().flat_map(|list| &*list.0)
    }

    /// All of them as one list. Of a long one this takes as much time as it is long.
    pub fn list(&self) -> Attribution {
        match &*self.0 {
            [list] => list.clone(),
            _ => Attribution::new(self.iter().cloned()),
        }
    }
}

impl From<Attribution> for Leaves {
    fn from(list: Attribution) -> Self {
        Self([list].into())
    }
}

/// A list of policies as a view holds it. A long one is made of parts, so that where one of very many
/// policies changes, only the parts that it is in do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyList {
    /// These policies.
    Policies(Attribution),
    /// All policies of these other lists: sorted, without repeats, never empty. No policy is in two.
    Parts(Arc<[AttributionId]>),
}

impl PolicyList {
    /// How many policies, or other lists, it lists.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Policies(policies) => policies.0.len(),
            Self::Parts(parts) => parts.len(),
        }
    }

    /// The list that is made of these.
    pub fn of_parts(parts: impl IntoIterator<Item = AttributionId>) -> Self {
        let mut parts: Vec<_> = parts.into_iter().collect();
        parts.sort_unstable();
        Self::Parts(parts.into())
    }

    /// The name of this content.
    pub fn id(&self) -> AttributionId {
        match self {
            Self::Policies(policies) => policies.id(),
            Self::Parts(parts) => {
                AttributionId(crate::Digest::of("parts", parts.iter().map(|part| part.0.0)))
            }
        }
    }

    /// The lists that it is made of.
    pub fn parts(&self) -> &[AttributionId] {
        match self {
            Self::Policies(_) => &[],
            Self::Parts(parts) => parts,
        }
    }
}

impl From<Attribution> for PolicyList {
    fn from(policies: Attribution) -> Self {
        Self::Policies(policies)
    }
}

/// What the policies of one kind of pod say in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// The direction, seen from the pod.
    pub direction: Direction,
    /// What holds for every atom without a row of its own: the rules for all peers, else denial.
    pub base: Row,
    /// The atoms of which something else than `base` holds.
    pub rows: BTreeMap<AtomId, Row>,
}

/// One of the node's own pods. Pods in the host's network are none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// Its addresses, sorted; none while the API server has none.
    pub addresses: Vec<IpAddr>,
    /// For a static pod, its `kubernetes.io/config.hash`, which its cgroup is named by.
    pub config_hash: Option<Arc<str>>,
    /// What judges connections to it; none if nothing isolates it.
    pub ingress: Option<SetId>,
    /// What judges connections from it; none if nothing isolates it.
    pub egress: Option<SetId>,
    /// Whether its namespace carries `policy.network.gke.io/enable-deny-logging: "true"`.
    pub denies_logged: bool,
}

impl Pod {
    /// Where its cgroup is not named by its UID, what it is named by in that place.
    pub fn config_name(&self) -> Option<PodUid> {
        self.config_hash.as_deref().map(PodUid::from)
    }

    /// The set that judges it in a direction.
    pub fn set(&self, direction: Direction) -> Option<SetId> {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }
}

/// One half of the NetworkLogging object; `delegate` without `log` cannot be said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogMode {
    /// Nothing is logged.
    #[default]
    Off,
    /// Everything is logged.
    All,
    /// What an annotation asks for is logged.
    Delegated,
}

/// What is logged, cluster-wide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Logging {
    /// Allowed connections.
    pub allow: LogMode,
    /// Denied connections.
    pub deny: LogMode,
    /// `metadata.generation` of the NetworkLogging object that says so; 0 without one.
    pub generation: i64,
}

/// A block of addresses. IPv6 blocks do not cover IPv4 addresses, mapped ones included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    address: IpAddr,
    length: u8,
}

/// Why something is no block.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no CIDR block: expected an address, a slash and a prefix length, with no bits set after the prefix"
)]
pub struct BlockError(pub String);

impl Block {
    /// The block of this length that holds `address`; bits after the prefix are cleared.
    ///
    /// # Errors
    ///
    /// [`BlockError`] if the length exceeds the address's bits.
    pub fn containing(address: IpAddr, length: u8) -> Result<Self, BlockError> {
        let wrong = || BlockError(format!("{address}/{length}"));
        let address = match address {
            IpAddr::V4(v4) if length <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                IpAddr::V4((v4.to_bits() & mask).into())
            }
            IpAddr::V6(v6) if length <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                IpAddr::V6((v6.to_bits() & mask).into())
            }
            _ => return Err(wrong()),
        };
        Ok(Self { address, length })
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// The prefix length, in bits of the block's own family.
    pub fn length(self) -> u8 {
        self.length
    }

    /// Whether the block holds an address of its own family.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self::containing(address, self.length).is_ok_and(|block| block == self)
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self, BlockError> {
        let wrong = || BlockError(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(wrong)?;
        // "+1" and "01" parse as numbers, but no API server takes them.
        if length.is_empty()
            || !length.bytes().all(|b| b.is_ascii_digit())
            || (length.len() > 1 && length.starts_with('0'))
        {
            return Err(wrong());
        }
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let block = Self::containing(address, length.parse().map_err(|_| wrong())?).map_err(|_| wrong())?;
        if block.address == address { Ok(block) } else { Err(wrong()) }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Block {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Everything that one node needs to judge every packet of its pods.
///
/// A remote address has exactly one atom: its own entry in `addresses`, else that of the longest
/// block that holds it, else none. A pod without a set in a direction is not isolated there. A
/// packet of an isolated pod is judged by the set's row for the atom, else by the set's base row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// The node's own pods.
    pub pods: BTreeMap<PodUid, Pod>,
    /// The sets that judge them.
    pub sets: BTreeMap<SetId, Set>,
    /// The policies behind each verdict, and the parts of long lists.
    pub attributions: BTreeMap<AttributionId, PolicyList>,
    /// Remote addresses (pods, mostly) that peers of this node's policies match.
    pub addresses: BTreeMap<IpAddr, AtomId>,
    /// Remote blocks, from `ipBlock` peers.
    pub blocks: BTreeMap<Block, AtomId>,
    /// Where Services are called; empty while nothing isolates one of the node's pods on egress.
    pub services: BTreeMap<Frontend, Service>,
    /// What is logged.
    pub logging: Logging,
}

/// What is wrong with a view: it names something that it does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ViewError {
    /// A pod's set is not there, or is one for the other direction.
    #[error("pod {pod} is judged by {direction:?} set {set}, which the view does not hold")]
    NoSet {
        /// The pod.
        pod: PodUid,
        /// The direction in which it is judged.
        direction: Direction,
        /// The set.
        set: SetId,
    },
    /// A row names policies that are not there.
    #[error("set {set} names attribution {attribution}, which the view does not hold")]
    NoAttribution {
        /// The set.
        set: SetId,
        /// The attribution.
        attribution: AttributionId,
    },
    /// A list is made of one that is not there.
    #[error("attribution {list} is made of {part}, which the view does not hold")]
    NoPart {
        /// The list.
        list: AttributionId,
        /// What it is made of.
        part: AttributionId,
    },
}

impl NodeView {
    /// The atom of a remote address.
    pub fn atom(&self, address: IpAddr) -> Option<AtomId> {
        let address = canonical(address);
        self.addresses.get(&address).copied().or_else(|| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            (0..=longest).rev().find_map(|length| {
                let block = Block::containing(address, length).ok()?;
                self.blocks.get(&block).copied()
            })
        })
    }

    /// What the view says of a packet of one of its pods; none if nothing isolates the pod in that
    /// direction, or the pod is not in the view.
    ///
    /// This is the reference that the kernel's program is tested against; it does not know of the
    /// node's own traffic, of a pod's traffic with itself, nor of established connections.
    pub fn act(&self, pod: &PodUid, direction: Direction, remote: IpAddr, key: PortKey) -> Option<Act> {
        let set = self.sets.get(&self.pods.get(pod)?.set(direction)?)?;
        let row = self.atom(remote).and_then(|atom| set.rows.get(&atom)).unwrap_or(&set.base);
        Some(row.act(key))
    }

    /// The exact list of policies that an attribution names; none if the view does not hold it whole.
    pub fn attribution(&self, id: AttributionId) -> Option<Attribution> {
        self.leaves(id).map(|leaves| leaves.list())
    }

    /// The same, as the view holds it.
    pub fn leaves(&self, id: AttributionId) -> Option<Leaves> {
        let (mut found, mut left, mut parts) = (vec![], vec![id], 0);
        while let Some(id) = left.pop() {
            parts += 1;
            match self.attributions.get(&id)? {
                PolicyList::Policies(policies) => found.push(policies.clone()),
                // No list is part of another twice, so that more parts than there are lists is a mistake.
                PolicyList::Parts(_) if parts > self.attributions.len() => return None,
                PolicyList::Parts(parts) => left.extend(&**parts),
            }
        }
        found.sort_unstable();
        Some(Leaves(found.into()))
    }

    /// Checks that the view holds everything that it names.
    ///
    /// # Errors
    ///
    /// [`ViewError`] names the first thing that is missing.
    pub fn check(&self) -> Result<(), ViewError> {
        for (uid, pod) in &self.pods {
            for direction in Direction::BOTH {
                let Some(set) = pod.set(direction) else { continue };
                if self.sets.get(&set).is_none_or(|found| found.direction != direction) {
                    return Err(ViewError::NoSet { pod: uid.clone(), direction, set });
                }
            }
        }
        for (&set, content) in &self.sets {
            for row in std::iter::once(&content.base).chain(content.rows.values()) {
                for step in row.steps() {
                    let attribution = step.act.attribution;
                    if !self.attributions.contains_key(&attribution) {
                        return Err(ViewError::NoAttribution { set, attribution });
                    }
                }
            }
        }
        for (&list, content) in &self.attributions {
            if let Some(&part) = content.parts().iter().find(|part| !self.attributions.contains_key(part)) {
                return Err(ViewError::NoPart { list, part });
            }
        }
        Ok(())
    }
}

/// The one form in which both sides write an address: IPv4-mapped IPv6 addresses are IPv4.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// The 16 bytes by which the kernel knows an address: IPv4 as `::ffff:a.b.c.d`.
pub fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Digest, Verdict};

    fn attribution(name: &str) -> Attribution {
        Attribution::new([Policy { namespace: "default".into(), name: name.into(), logged: false }])
    }

    /// A view of one pod, isolated on ingress; `near` is allowed, the rest is not.
    fn view() -> (NodeView, PodUid) {
        let (uid, policy) = (PodUid::from("uid-1"), attribution("p"));
        let row = |verdict| Row::uniform(Act { verdict, attribution: policy.id() });
        let (set, near) = (SetId(Digest([1; 16])), AtomId(Digest([2; 16])));
        let content = Set {
            direction: Direction::Ingress,
            base: row(Verdict::Deny),
            rows: [(near, row(Verdict::Allow))].into(),
        };
        let pod = Pod {
            namespace: "default".into(),
            name: "a".into(),
            addresses: vec![],
            config_hash: None,
            ingress: Some(set),
            egress: None,
            denies_logged: false,
        };
        let view = NodeView {
            pods: [(uid.clone(), pod)].into(),
            sets: [(set, content)].into(),
            attributions: [(policy.id(), policy.into())].into(),
            addresses: [("10.0.0.1".parse().unwrap(), near)].into(),
            blocks: [("0.0.0.0/0".parse().unwrap(), AtomId(Digest([3; 16])))].into(),
            services: BTreeMap::new(),
            logging: Logging::default(),
        };
        (view, uid)
    }

    #[test]
    fn an_address_goes_before_a_block_and_a_block_before_the_base_row() {
        let (mut view, uid) = view();
        let verdict = |view: &NodeView, remote: &str| {
            let remote = remote.parse().unwrap();
            view.act(&uid, Direction::Ingress, remote, PortKey::new(6, 80)).map(|act| act.verdict)
        };
        assert_eq!(verdict(&view, "10.0.0.1"), Some(Verdict::Allow));
        assert_eq!(verdict(&view, "::ffff:10.0.0.1"), Some(Verdict::Allow));
        assert_eq!(verdict(&view, "10.0.0.2"), Some(Verdict::Deny));
        view.blocks.insert("10.0.0.0/8".parse().unwrap(), AtomId(Digest([2; 16])));
        assert_eq!(verdict(&view, "10.0.0.2"), Some(Verdict::Allow));
        assert_eq!(verdict(&view, "11.0.0.2"), Some(Verdict::Deny));
        assert_eq!(verdict(&view, "2001:db8::1"), Some(Verdict::Deny));
    }

    #[test]
    fn a_direction_that_nothing_isolates_has_no_act() {
        let (view, uid) = view();
        let remote = "10.0.0.1".parse().unwrap();
        assert_eq!(view.act(&uid, Direction::Egress, remote, PortKey::new(6, 80)), None);
    }

    #[test]
    fn a_long_list_is_the_policies_of_all_its_parts() {
        let (mut view, _) = view();
        let lists = ["q", "p", "r"].map(|name| PolicyList::from(attribution(name)));
        let inner = PolicyList::of_parts(lists[..2].iter().map(PolicyList::id));
        let long = PolicyList::of_parts([lists[2].id(), inner.id()]);
        view.attributions.extend(lists.into_iter().chain([inner.clone(), long.clone()]).map(|l| (l.id(), l)));
        let names = |id| -> Option<Vec<_>> {
            Some(view.attribution(id)?.0.iter().map(|policy| policy.name.to_string()).collect())
        };
        assert_eq!(names(long.id()), Some(vec!["p".into(), "q".into(), "r".into()]));
        assert_eq!(view.check(), Ok(()));
        // Nothing of a long list is copied to remember it.
        for leaf in &*view.leaves(long.id()).unwrap().0 {
            let PolicyList::Policies(own) = &view.attributions[&leaf.id()] else {
                panic!("a leaf has no parts")
            };
            assert!(Arc::ptr_eq(&own.0, &leaf.0));
        }
        let mut lacking = view.clone();
        let part = attribution("q").id();
        lacking.attributions.remove(&part);
        assert_eq!(lacking.attribution(long.id()), None);
        assert_eq!(lacking.check(), Err(ViewError::NoPart { list: inner.id(), part }));
    }

    #[test]
    fn a_view_holds_what_it_names() {
        let (view, uid) = view();
        assert_eq!(view.check(), Ok(()));
        let set = SetId(Digest([1; 16]));
        let mut lacking = view.clone();
        lacking.sets.clear();
        let direction = Direction::Ingress;
        assert_eq!(lacking.check(), Err(ViewError::NoSet { pod: uid, direction, set }));
        let mut lacking = view;
        lacking.attributions.clear();
        let attribution = attribution("p").id();
        assert_eq!(lacking.check(), Err(ViewError::NoAttribution { set, attribution }));
    }

    #[test]
    fn a_block_is_read_strictly() {
        for good in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "2001:db8::/32"] {
            assert_eq!(good.parse::<Block>().map(|block| block.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "10.0.0.0",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "::/129",
            "x/8",
            "/8",
            "10.0.0.0/",
        ] {
            assert_eq!(bad.parse::<Block>(), Err(BlockError(bad.to_owned())));
        }
    }

    #[test]
    fn a_block_holds_its_own_family_only() {
        let all6: Block = "::/0".parse().unwrap();
        assert!(all6.contains("2001:db8::1".parse().unwrap()));
        assert!(!all6.contains("10.0.0.1".parse().unwrap()));
    }
}
