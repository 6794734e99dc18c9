//! Random clusters from a small world, in which things meet, and how they are run and printed.

pub(crate) mod print;

use std::collections::BTreeSet;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use durward_engine::object::{
    Event, Key, Labels, NamedPort, Namespace, Operator, Peer, Pod, Policy, Port, Ports, Protocol,
    Requirement, Rule, Rules, Selector, Spec,
};
use durward_engine::oracle::Cluster;
use durward_engine::sample::{address, cidr};
use durward_proto::{Block, Direction, LogMode, Logging, PodUid};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.0",
    "10.0.1.255",
    "10.0.2.0",
    "192.168.0.1",
    "fd00::1",
    "fd00::2",
    "fd00::1:0",
];
const BLOCKS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/23",
    "10.0.0.0/31",
    "10.0.1.0/24",
    "10.0.1.255/32",
    "10.0.2.0/24",
    "::/0",
    "fd00::/64",
    "fd00::/127",
    "fd00::1:0/112",
    "::ffff:0:0/96",
];
const NUMBERS: [u16; 7] = [1, 79, 80, 81, 100, 443, 65535];
const NAMESPACES: [&str; 3] = ["blue", "green", "red"];
const NODES: [&str; 2] = ["north", "south"];

/// What happens to a cluster, in batches.
pub(crate) fn history(
    batches: std::ops::Range<usize>,
    events: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<Vec<Event>>> {
    vec(vec(event(), events), batches)
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => pod().prop_map(Event::Pod),
        2 => key("pod", 6).prop_map(Event::PodGone),
        3 => namespace().prop_map(Event::Namespace),
        1 => select(&NAMESPACES[..]).prop_map(|name| Event::NamespaceGone(name.into())),
        8 => policy().prop_map(Event::Policy),
        2 => key("policy", 4).prop_map(Event::PolicyGone),
        1 => logging().prop_map(Event::Logging),
    ]
}

/// The event, with the policy's own namespace in place of each block: where there are blocks, addresses are looked at one by
/// one, and otherwise by class.
pub(crate) fn without_blocks(mut event: Event) -> Event {
    if let Event::Policy(Policy { spec: Spec::Readable(rules), .. }) = &mut event {
        for rule in rules.ingress.iter_mut().chain(&mut rules.egress).flatten() {
            for peer in &mut rule.peers {
                if let Peer::Block { .. } = peer {
                    *peer = Peer::Pods { namespaces: None, pods: Selector::default() };
                }
            }
        }
    }
    event
}

fn logging() -> impl Strategy<Value = Logging> {
    let mode = || select(vec![LogMode::Off, LogMode::All, LogMode::Delegated]);
    (mode(), mode(), 0..3_i64).prop_map(|(allow, deny, generation)| Logging { allow, deny, generation })
}

/// Few keys, so that the same one is often put again.
fn key(kind: &'static str, count: u8) -> impl Strategy<Value = Key> {
    (select(&NAMESPACES[..2]), 1..=count)
        .prop_map(move |(namespace, n)| Key::new(namespace, format!("{kind}-{n}")))
}

fn labels() -> impl Strategy<Value = Labels> {
    let label = |key: &'static str| (Just(key), select(vec!["1", "2"]));
    (option::of(label("app")), option::of(label("tier"))).prop_map(|(app, tier)| {
        Arc::new([app, tier].into_iter().flatten().map(|(key, value)| (key.into(), value.into())).collect())
    })
}

fn namespace() -> impl Strategy<Value = Namespace> {
    (select(&NAMESPACES[..]), labels(), any::<bool>()).prop_map(|(name, labels, denies_logged)| Namespace {
        name: name.into(),
        labels,
        denies_logged,
    })
}

fn pod() -> impl Strategy<Value = Pod> {
    // Mostly its own one, so that a pod is also seen to change without moving.
    let any = subsequence(&ADDRESSES[..], 0..3).prop_shuffle();
    let addresses = option::of(any);
    let node = option::weighted(0.9, select(&NODES[..]));
    let rare = || prop::bool::weighted(0.1);
    let place = (addresses, rare(), node, rare(), rare());
    let again = (prop::bool::weighted(0.2), option::weighted(0.1, Just("hash")));
    (key("pod", 6), labels(), place, vec(named_port(), 0..3), again).prop_map(
        |(key, labels, (addresses, mapped, node, host_network, completed), ports, (again, config_hash))| {
            let own = || vec![ADDRESSES[usize::from(key.name.as_bytes()[4] - b'0')]];
            let addresses = addresses.unwrap_or_else(own);
            Pod {
                uid: PodUid::from(format!("{key}{}", if again { "-again" } else { "" }).as_str()),
                key,
                labels,
                addresses: addresses
                    .into_iter()
                    .map(address)
                    .map(|ip| if mapped { map(ip) } else { ip })
                    .collect(),
                node: node.map(Into::into),
                host_network,
                completed,
                config_hash: config_hash.map(Into::into),
                ports,
            }
        },
    )
}

/// The same address, an IPv4 one as a mapped IPv6 one.
fn map(address: IpAddr) -> IpAddr {
    durward_proto::view::mapped(address).into()
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![6 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port_name() -> impl Strategy<Value = Arc<str>> {
    select(vec!["http", "dns"]).prop_map(Arc::from)
}

fn number() -> impl Strategy<Value = u16> {
    select(&NUMBERS[..])
}

fn named_port() -> impl Strategy<Value = NamedPort> {
    (port_name(), protocol(), number()).prop_map(|(name, protocol, number)| NamedPort {
        name,
        protocol,
        number,
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    let values = || vec(select(vec!["1", "2", "3"]).prop_map(Arc::from), 1..3);
    let operator = prop_oneof![
        4 => values().prop_map(Operator::In),
        1 => values().prop_map(Operator::NotIn),
        1 => Just(Operator::Exists),
        1 => Just(Operator::DoesNotExist),
    ];
    let requirement = (select(vec!["app", "tier"]), operator);
    let requirement = requirement.prop_map(|(key, operator)| Requirement { key: key.into(), operator });
    prop_oneof![2 => vec(requirement, 0..3), 1 => Just(vec![])].prop_map(Selector)
}

fn peer() -> impl Strategy<Value = Peer> {
    // By name, too, as the API server labels every namespace.
    let by_name = select(&NAMESPACES[..]).prop_map(|name| {
        let operator = Operator::In(vec![name.into()]);
        Selector(vec![Requirement { key: "kubernetes.io/metadata.name".into(), operator }])
    });
    let namespaces = option::of(prop_oneof![3 => selector(), 1 => by_name]);
    let block = || select(&BLOCKS[..]).prop_map(cidr);
    prop_oneof![
        3 => (namespaces, selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        2 => (block(), vec(block(), 0..3)).prop_map(|(block, except)| Peer::Block { block, except }),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let range = (number(), number()).prop_map(|(a, b)| Ports::Range { first: a.min(b), last: a.max(b) });
    let ports = prop_oneof![
        1 => Just(Ports::All),
        3 => number().prop_map(|number| Ports::Range { first: number, last: number }),
        2 => range,
        3 => port_name().prop_map(Ports::Named),
    ];
    (protocol(), ports).prop_map(|(protocol, ports)| Port { protocol, ports })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let rule = (vec(peer(), 0..3), vec(port(), 0..3)).prop_map(|(peers, ports)| Rule { peers, ports });
    vec(rule, 0..3)
}

fn policy() -> impl Strategy<Value = Policy> {
    let types = || subsequence(Direction::BOTH.to_vec(), 0..=2);
    let readable = (selector(), types(), option::weighted(0.8, rules()), option::weighted(0.6, rules()));
    let readable = readable.prop_map(|(selector, types, ingress, egress)| {
        Spec::Readable(Rules { selector, types, ingress, egress })
    });
    let unreadable =
        (selector(), types(), select(vec!["a", "b"])).prop_map(|(selector, directions, reason)| {
            Spec::Unreadable { selector, directions, reason: reason.into() }
        });
    let spec = prop_oneof![12 => readable, 1 => unreadable];
    (key("policy", 4), any::<bool>(), spec).prop_map(|(key, logged, spec)| Policy { key, logged, spec })
}

/// Every address worth asking for: the pods', and both sides of each end of each block.
pub(crate) fn remotes(cluster: &Cluster) -> Vec<IpAddr> {
    let mut remotes: BTreeSet<_> = cluster.pods.values().flat_map(|pod| &pod.addresses).copied().collect();
    remotes.extend(["10.0.0.2", "fd00::2"].map(address));
    for rule in rules_of(cluster) {
        for peer in &rule.peers {
            if let Peer::Block { block, except } = peer {
                remotes.extend([block].into_iter().chain(except).copied().flat_map(ends));
            }
        }
    }
    let mapped: Vec<_> = remotes.iter().filter(|ip| ip.is_ipv4()).step_by(4).copied().map(map).collect();
    remotes.extend(mapped);
    remotes.into_iter().collect()
}

fn rules_of(cluster: &Cluster) -> impl Iterator<Item = &Rule> {
    cluster.policies.values().flat_map(|policy| match &policy.spec {
        Spec::Readable(rules) => rules.ingress.iter().chain(&rules.egress).flatten().collect(),
        Spec::Unreadable { .. } => vec![],
    })
}

fn ends(block: Block) -> [IpAddr; 4] {
    match block.address() {
        IpAddr::V4(first) => {
            let first = first.to_bits();
            let last = first | u32::MAX.checked_shr(block.length().into()).unwrap_or(0);
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(|bits| IpAddr::V4(bits.into()))
        }
        IpAddr::V6(first) => {
            let first = first.to_bits();
            let last = first | u128::MAX.checked_shr(block.length().into()).unwrap_or(0);
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(|bits| IpAddr::V6(bits.into()))
        }
    }
}

/// Every protocol and port worth asking for: both sides of each bound, and protocols without ports.
pub(crate) fn keys(cluster: &Cluster) -> Vec<(u8, u16)> {
    let ranges = rules_of(cluster).flat_map(|rule| &rule.ports).filter_map(|port| match port.ports {
        Ports::Range { first, last } => Some([first, last]),
        Ports::All | Ports::Named(_) => None,
    });
    let named = cluster.pods.values().flat_map(|pod| &pod.ports).map(|port| port.number);
    let numbers = ranges.flatten().chain(named).chain([1, u16::MAX]);
    let ports: BTreeSet<u16> = numbers.flat_map(|n| [n - 1, n, n.saturating_add(1)]).collect();
    let with_ports =
        [6, 17, 132].into_iter().flat_map(|protocol| ports.iter().map(move |&port| (protocol, port)));
    with_ports.chain([(0, 0), (1, 0), (58, 0), (255, 0)]).collect()
}

/// Runs a property on random values: `DURWARD_CASES` (a number, or `forever`) instead of `cases` of
/// them, from `DURWARD_SEED` instead of a seed from the clock. A value that fails is made small
/// and printed, with the seed.
pub(crate) fn check<S: Strategy>(
    cases: u32,
    strategy: S,
    print: impl Fn(&S::Value) -> String,
    property: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let wanted = std::env::var("DURWARD_CASES").ok();
    let forever = wanted.as_deref() == Some("forever");
    let number =
        |text: &String| text.parse().unwrap_or_else(|_| panic!("DURWARD_CASES: no number: {text:?}"));
    let cases = if forever { 10_000 } else { wanted.as_ref().map_or(cases, number) };
    let seed = std::env::var("DURWARD_SEED").ok();
    let mut seed: u64 = match seed {
        Some(text) => text.parse().unwrap_or_else(|_| panic!("DURWARD_SEED: no number: {text:?}")),
        None => std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos() as u64),
    };
    loop {
        // Not by `println!`, of which nobody sees anything unless the test fails.
        let said = writeln!(std::io::stderr(), "DURWARD_SEED={seed} DURWARD_CASES={cases}");
        said.expect("a standard error");
        // Not all zero, which would be no seed.
        let bytes: Vec<u8> = (seed | 1 << 63).to_le_bytes().into_iter().cycle().take(16).collect();
        let config =
            Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
        let rng = TestRng::from_seed(RngAlgorithm::XorShift, &bytes);
        match TestRunner::new_with_rng(config, rng).run(&strategy, &property) {
            Ok(()) => {}
            Err(TestError::Fail(reason, value)) => {
                panic!("DURWARD_SEED={seed} DURWARD_CASES={cases}: {reason}\n{}", print(&value))
            }
            Err(TestError::Abort(reason)) => panic!("DURWARD_SEED={seed}: {reason}"),
        }
        if !forever {
            return;
        }
        seed += 1;
    }
}
