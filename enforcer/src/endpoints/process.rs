//! Who runs in a network namespace: what `/proc` says of its processes. IO.
//!
//! No namespace is entered: the host's `/proc` shows each process's namespace, cgroup and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use durward_proto::PodUid;

use super::cgroup::pod_of;

/// What the processes of a namespace say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inhabitants {
    /// The pods that they belong to; more than one means that they disagree.
    pub(crate) pods: BTreeSet<PodUid>,
    /// The namespace's addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// When the first of them started, in clock ticks since the machine did.
    pub(crate) started_ticks: Option<u64>,
}

/// Who runs in each of these namespaces, which are named by inode. A process that ends meanwhile is left out.
pub(crate) fn inhabitants(proc: &Path, wanted: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, Inhabitants>> {
    let mut found = BTreeMap::<u64, Inhabitants>::new();
    for folder in std::fs::read_dir(proc)? {
        let folder = folder?;
        if !folder.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let folder = folder.path();
        let Some(inode) = namespace(&folder).filter(|inode| wanted.contains(inode)) else { continue };
        let Some(pod) = read(&folder, "cgroup").as_deref().and_then(pod_of) else { continue };
        let of = found.entry(inode).or_default();
        if of.pods.is_empty() {
            of.addresses = addresses(&folder);
        }
        of.pods.insert(pod);
        let started = read(&folder, "stat").as_deref().and_then(started_ticks);
        of.started_ticks = of.started_ticks.into_iter().chain(started).min();
    }
    Ok(found)
}

fn read(folder: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(folder.join(name)).ok()
}

/// The inode of a process's network namespace: the link reads `net:[4026531840]`.
fn namespace(folder: &Path) -> Option<u64> {
    let link: PathBuf = std::fs::read_link(folder.join("ns/net")).ok()?;
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// The addresses of a process's network namespace, but for those of its loopback device.
fn addresses(folder: &Path) -> Vec<IpAddr> {
    let v4 = read(folder, "net/fib_trie").map(|text| v4_addresses(&text)).unwrap_or_default();
    let v6 = read(folder, "net/if_inet6").map(|text| v6_addresses(&text)).unwrap_or_default();
    let all: BTreeSet<IpAddr> =
        v4.into_iter().map(IpAddr::from).chain(v6.into_iter().map(IpAddr::from)).collect();
    all.into_iter().filter(|address| !address.is_loopback()).collect()
}

/// Local addresses in `/proc/net/fib_trie`: a leaf `|-- 10.0.0.1` with a line `/32 host LOCAL` below it.
fn v4_addresses(text: &str) -> BTreeSet<Ipv4Addr> {
    let mut leaf: Option<Ipv4Addr> = None;
    let mut local = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address.parse().ok();
        } else if line == "/32 host LOCAL" {
            local.extend(leaf);
        }
    }
    local
}

/// Addresses in `/proc/net/if_inet6`: 32 hex digits first in each line.
fn v6_addresses(text: &str) -> BTreeSet<Ipv6Addr> {
    let address = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    text.lines().filter_map(address).map(Ipv6Addr::from).collect()
}

/// The 22nd field of `/proc/PID/stat`. The second is the program's name in brackets, and may hold anything.
fn started_ticks(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 10.0.0.0/24 2\n        \
                    |-- 10.0.0.0\n           /24 link UNICAST\n        |-- 10.0.0.7\n           /32 host LOCAL\n";
        assert_eq!(v4_addresses(trie), [Ipv4Addr::new(10, 0, 0, 7)].into());
        let table = "fd000000000000000000000000000007 02 40 00 80     eth0\n";
        assert_eq!(v6_addresses(table), ["fd00::7".parse().unwrap()].into());
    }

    #[test]
    fn a_programs_name_does_not_move_the_fields_after_it() {
        let rest: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(started_ticks(&format!("7 (a b) c) {}", rest.join(" "))), Some(22));
    }

    #[test]
    fn processes_that_cannot_be_listed_are_not_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(inhabitants(&folder.path().join("proc"), &BTreeSet::from([7])).is_err());
        assert_eq!(inhabitants(folder.path(), &BTreeSet::from([7])).unwrap(), BTreeMap::new());
    }

    #[test]
    fn this_process_has_a_namespace() {
        let folder = Path::new("/proc/self");
        assert!(namespace(folder).is_some());
        assert!(read(folder, "stat").as_deref().and_then(started_ticks).is_some());
    }
}
