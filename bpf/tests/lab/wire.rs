//! Network namespaces that are wired to the lab as a CNI would: one veth each, addresses of both families, routes
//! through the lab, which forwards.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

use super::ip;
use super::pod::Family;

/// A network namespace; it ends with this, and its interfaces with it.
pub struct Netns(File);

impl Netns {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("the namespace is seen")
        });
        let netns = Self(made.join().expect("the thread ends"));
        netns.enter(|| {
            trust_addresses();
            ip("link set lo up");
        });
        netns
    }

    /// Does something in it; sockets stay there.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace is entered");
                act()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Wires it to the lab by interface `name`.
    pub fn wire(&self, name: &str, addresses: [IpAddr; 2], nodes: [IpAddr; 2]) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        ip(&format!("link add {name} type veth peer name eth0 netns {path}"));
        ip(&format!("link set {name} up"));
        for node in nodes {
            // The same address at each interface, as CNI plugins do.
            ip(&format!("addr add {node}/{} dev {name}{}", bits(node), no_dad(node)));
        }
        self.enter(|| {
            ip("link set eth0 up");
            for (address, node) in addresses.into_iter().zip(nodes) {
                ip(&format!("addr add {address}/{} dev eth0{}", bits(address), no_dad(address)));
                ip(&format!("{} route add {node} dev eth0", family(node)));
                ip(&format!("{} route add default via {node} dev eth0", family(node)));
            }
        });
        for address in addresses {
            ip(&format!("{} route add {address} dev {name}", family(address)));
        }
    }
}

/// Nobody else has our addresses: to ask first would lose what is sent in the first seconds.
fn trust_addresses() {
    for scope in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad"), "0").expect("IPv6 is there");
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "-4" } else { "-6" }
}

fn no_dad(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "" } else { " nodad" }
}

/// A pod, its friend and a rogue, each in a namespace; the lab is their node.
pub struct Wires {
    pub pod: Netns,
    pub friend: Netns,
    pub rogue: Netns,
}

impl Wires {
    pub fn new(families: [Family; 2]) -> Self {
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("forwarding is allowed");
        }
        trust_addresses();
        let [four, six] = families;
        let wires = Self { pod: Netns::new(), friend: Netns::new(), rogue: Netns::new() };
        let nodes = [four.node, six.node];
        wires.pod.wire("pod", [four.pod, six.pod], nodes);
        wires.friend.wire("uplink", [four.friend, six.friend], nodes);
        wires.rogue.wire("other", [four.rogue, six.rogue], nodes);
        wires
    }
}

/// The lab's id for the pod's namespace.
pub fn nsid(name: &str) -> u32 {
    let output =
        Command::new("ip").args(["-o", "link", "show", "dev", name]).output().expect("iproute2 runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = text.split_once("link-netnsid ").and_then(|(_, rest)| rest.split_whitespace().next());
    id.and_then(|id| id.parse().ok()).unwrap_or_else(|| panic!("no namespace id in {text}"))
}

/// Loads nftables rules in the lab.
pub fn nft(rules: &str) {
    let status = Command::new("nft").arg(rules).status().expect("nftables is installed");
    assert!(status.success(), "nft {rules}");
}

/// The lab's connection tracking forgets the pod's connections, as kube-proxy lets it.
pub fn forget_connections(pod: IpAddr) {
    let family = if pod.is_ipv4() { "ipv4" } else { "ipv6" };
    let arguments = ["-f", family, "-D", "-s", &pod.to_string()];
    // It fails if there is none.
    drop(Command::new("conntrack").args(arguments).output().expect("conntrack is installed"));
}
