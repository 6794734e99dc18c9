//! The network between the hosts: a namespace for each, all on one bridge, with routes to each other's pods (IO).

use std::{fs, path::Path, process::Command};

use crate::{
    Cni, Config, Namespaces, Result,
    config::{FABRIC, addresses, host_id, pod_ranges},
    error::Named,
    process,
};

/// Each host's settings; without forwarding a node drops its pods' packets. The last lets sockets ping, as containerd lets pods.
const SETTINGS: [(&str, &str); 5] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];
/// Services of pods on one bridge are translated only if bridged packets pass through netfilter.
const BRIDGE_SETTINGS: [(&str, &str); 2] =
    [("net/bridge/bridge-nf-call-iptables", "1"), ("net/bridge/bridge-nf-call-ip6tables", "1")];

/// The network namespace of a host.
pub(crate) fn namespace(bed: &str, host: &str) -> Result<Namespaces> {
    Namespaces::network(&Path::new("/run/netns").join(host_id(bed, host)))
}

pub(crate) fn weave(config: &Config) -> Result<()> {
    let bed = &config.name;
    let mut settings = SETTINGS.to_vec();
    if config.cni == Cni::Bridge {
        if !Path::new("/proc/sys/net/bridge").exists() {
            process::output(Command::new("modprobe").arg("br_netfilter"))?;
        }
        settings.extend(BRIDGE_SETTINGS);
    }
    let hosts = config.hosts();
    let names = hosts.iter().map(String::as_str).chain([FABRIC]);
    ip(None, &names.map(|host| format!("netns add {}\n", host_id(bed, host))).collect::<String>())?;
    let plugs = hosts.iter().map(|host| {
        format!(
            "link add {host} type veth peer name eth0 netns {}\nlink set {host} master bridge up\n",
            host_id(bed, host)
        )
    });
    let bridge = String::from("link set lo up\nlink add bridge type bridge\nlink set bridge up\n");
    ip(Some(&host_id(bed, FABRIC)), &plugs.fold(bridge, |all, plug| all + &plug))?;
    for host in &hosts {
        ip(Some(&host_id(bed, host)), &host_links(config, host))?;
        namespace(bed, host)?.run(|| configure(&settings))??;
    }
    Ok(())
}

fn host_links(config: &Config, host: &str) -> String {
    let (v4, v6) = addresses(host);
    let mut lines = format!(
        "link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
         route add default via 172.30.0.254\nroute add default via fd00:30::254\n"
    ); // The default leads nowhere; but a packet to a ClusterIP needs some route before it is translated.
    for node in config.node_names().iter().filter(|node| *node != host) {
        let ((v4, v6), (pods_v4, pods_v6)) = (addresses(node), pod_ranges(node));
        lines += &format!("route add {pods_v4} via {v4}\nroute add {pods_v6} via {v6}\n");
    }
    lines
}

fn configure(settings: &[(&str, &str)]) -> Result<()> {
    settings.iter().try_for_each(|(name, value)| {
        let file = Path::new("/proc/sys").join(name);
        fs::write(&file, value).at("writing", &file)
    })
}

fn ip(namespace: Option<&str>, batch: &str) -> Result<()> {
    let inside = namespace.map(|name| ["-n", name]);
    process::feed(Command::new("ip").args(inside.into_iter().flatten()).args(["-batch", "-"]), batch)
        .map(drop)
}
