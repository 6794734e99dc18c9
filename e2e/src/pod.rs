//! Pods of a bed, and the way into their network namespaces (IO).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use serde_json::json;

use crate::{Bed, Error, Namespaces, Result, config::host_id, kube::split, sweep::hierarchies};

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    /// `namespace/name`.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The node that it runs on.
    pub node: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Its network namespace: what runs in there talks as the pod.
    pub network: Namespaces,
}

impl Pod {
    /// Both of its addresses with a port.
    pub fn sockets(&self, port: u16) -> [SocketAddr; 2] {
        [(IpAddr::from(self.v4), port).into(), (IpAddr::from(self.v6), port).into()]
    }
}

impl Bed {
    /// Makes a pod that does nothing, on a node of choice. It is running once [`Bed::pod`] returns it.
    pub fn run_pod(&self, pod: &str, node: &str, labels: &[(&str, &str)]) -> Result<()> {
        let (namespace, name) = split(pod)?;
        let labels: serde_json::Map<_, _> = labels.iter().map(|&(k, v)| (k.into(), v.into())).collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": labels},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "pause", "image": "bed.local/pause:1", "imagePullPolicy": "Never"}],
            },
        });
        self.apply(&pod.to_string()).map(drop)
    }

    /// Waits until the pod `namespace/name` is ready and has its addresses.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        let (namespace, short) = split(name)?;
        self.wait(&format!("pod {name} is ready"), || {
            let object = self.json(&["-n", namespace, "get", "pod", short])?;
            let status = &object["status"];
            let conditions = status["conditions"].as_array().into_iter().flatten();
            let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            let addresses = status["podIPs"].as_array().into_iter().flatten();
            let addresses: Vec<IpAddr> =
                addresses.filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect();
            let v4 = addresses.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
            let v6 = addresses.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
            let (uid, node) = (object["metadata"]["uid"].as_str(), object["spec"]["nodeName"].as_str());
            let (true, Some(uid), Some(node), Some(v4), Some(v6)) = (ready, uid, node, v4, v6) else {
                return Ok(None);
            };
            let network = pod_network(self.name(), node, uid)?;
            Ok(Some(Pod { name: name.into(), uid: uid.into(), node: node.into(), v4, v6, network }))
        })
    }
}

/// By way of a process of the pod, which is found in the pod's cgroup.
fn pod_network(bed: &str, node: &str, uid: &str) -> Result<Namespaces> {
    let hierarchies = hierarchies()?;
    let folders = hierarchies.iter().flat_map(|hierarchy| {
        let pods = hierarchy.join(host_id(bed, node)).join("kubepods");
        ["", "burstable", "besteffort"].map(|class| pods.join(class).join(format!("pod{uid}")))
    });
    let pid = folders.into_iter().find_map(|folder| first_process(&folder));
    Namespaces::network_of(pid.ok_or_else(|| Error::unfit(format!("pod {uid} on {node} has no process")))?)
}

fn first_process(cgroup: &Path) -> Option<u32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    if let Some(pid) = own.lines().find_map(|line| line.parse().ok()) {
        return Some(pid);
    }
    let children = fs::read_dir(cgroup).ok()?.flatten().map(|entry| entry.path());
    children.filter(|path| path.is_dir()).find_map(|path| first_process(&path))
}
