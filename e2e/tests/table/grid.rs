//! Nine pods in three namespaces on two nodes, what is said of them to API server and oracle alike, and the matrices
//! of connections between them (IO).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use durward_e2e::{Bed, Error, Outcome, Pod, Probe, Protocol, Result, Server, wait};
use durward_engine::object::{Event, Key, Labels, Namespace};
use durward_engine::oracle::Cluster;
use durward_proto::NodeView;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cell::Cell;
use crate::{read, sequences::Change};

pub(crate) const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub(crate) const PODS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 2] = [80, 81];
/// What each pod sends to each address.
const PROBES: [(Protocol, u16); 5] = [
    (Protocol::Tcp, PORTS[0]),
    (Protocol::Tcp, PORTS[1]),
    (Protocol::Udp, PORTS[0]),
    (Protocol::Udp, PORTS[1]),
    (Protocol::Icmp, 0),
];

/// How long silence is a denial, at first and at most: it doubles whenever an answer that should come does not, so that a
/// busy machine gets the time that it needs.
const SILENCE: [Duration; 2] = [Duration::from_millis(650), Duration::from_secs(8)];

/// A policy: its key, and its spec as JSON.
pub(crate) type PolicyJson = (Key, Value);

pub(crate) struct Grid<'a> {
    bed: &'a Bed,
    pods: BTreeMap<Key, Listening>,
    cluster: Cluster,
    policies: BTreeMap<Key, Value>,
}

struct Listening {
    pod: Pod,
    _servers: Vec<Server>,
}

impl<'a> Grid<'a> {
    /// Makes what is missing of the pods, and finds the others.
    pub(crate) fn new(bed: &'a Bed) -> Result<Self> {
        let mut grid =
            Self { bed, pods: BTreeMap::new(), cluster: Cluster::default(), policies: BTreeMap::new() };
        let keys: Vec<_> =
            NAMESPACES.iter().flat_map(|&namespace| PODS.map(|name| Key::new(namespace, name))).collect();
        for namespace in NAMESPACES {
            bed.namespace(namespace, &[("ns", namespace)])?;
            grid.say_namespace(namespace, &[("ns", namespace)]);
        }
        for key in &keys {
            bed.apply(&manifest(key).to_string())?;
        }
        for key in &keys {
            grid.listen(key)?;
        }
        Ok(grid)
    }

    /// An address of a pod, by its name in short: `x/a`.
    pub(crate) fn v4(&self, namespace: &str, name: &str) -> Ipv4Addr {
        self.pods[&Key::new(namespace, name)].pod.v4
    }

    /// Its other address.
    pub(crate) fn v6(&self, namespace: &str, name: &str) -> Ipv6Addr {
        self.pods[&Key::new(namespace, name)].pod.v6
    }

    pub(crate) fn policy(&mut self, (key, spec): &PolicyJson) -> Result<()> {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": key.namespace, "name": key.name}, "spec": spec,
        });
        self.bed.apply(&object.to_string())?;
        self.cluster.apply(Event::Policy(read::policy(key.clone(), spec)));
        self.policies.insert(key.clone(), spec.clone());
        Ok(())
    }

    pub(crate) fn no_policies(&mut self) -> Result<()> {
        for key in std::mem::take(&mut self.policies).into_keys() {
            self.delete_policy(&key)?;
        }
        Ok(())
    }

    fn delete_policy(&mut self, key: &Key) -> Result<()> {
        self.bed.kubectl(&["-n", &key.namespace, "delete", "networkpolicy", &key.name])?;
        self.cluster.apply(Event::PolicyGone(key.clone()));
        self.policies.remove(key);
        Ok(())
    }

    pub(crate) fn change(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Policy(policy) => self.policy(policy),
            Change::DeletePolicy(key) => self.delete_policy(key),
            Change::LabelPod(key, label, value) => self.label_pod(key, &format!("{label}={value}")),
            Change::LabelNamespace(namespace, label, value) => {
                let change = value.map_or(format!("{label}-"), |value| format!("{label}={value}"));
                self.bed.kubectl(&["label", "namespace", namespace, &change, "--overwrite"])?;
                let own = BTreeMap::from([("ns", Some(*namespace)), (*label, *value)]);
                let labels: Vec<_> = own.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
                self.say_namespace(namespace, &labels);
                Ok(())
            }
            Change::Recreate(key) => {
                self.pods.remove(key);
                let (namespace, name) = (&key.namespace, &key.name);
                self.bed.kubectl(&["-n", namespace, "delete", "pod", name, "--grace-period=0", "--force"])?;
                self.bed.apply(&manifest(key).to_string())?;
                self.listen(key)
            }
        }
    }

    /// Puts back what these changes did to labels.
    pub(crate) fn original_labels(&mut self, changes: &[Change]) -> Result<()> {
        let mut done = BTreeSet::new();
        for change in changes {
            match change {
                Change::LabelPod(key, label, _) if done.insert((key.to_string(), label)) => {
                    self.label_pod(key, &format!("{label}-"))?;
                }
                Change::LabelNamespace(namespace, label, _)
                    if done.insert((namespace.to_string(), label)) =>
                {
                    self.change(&Change::LabelNamespace(namespace, label, None))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until two rounds in a row of the whole matrix are as the oracle says.
    pub(crate) fn holds(&self, what: &str) -> Result<()> {
        let cells = self.cells();
        let (mut held, [mut silence, longest], mut wrong) = (0, SILENCE, vec![]);
        let result = wait(&format!("the matrix is as the oracle says: {what}"), || {
            let outcomes = self.round(&cells, silence).map_err(|error| error.to_string())?;
            let is_wrong = |(cell, outcome): &(&Cell, Outcome)| {
                *outcome != if cell.allowed(&self.cluster) { Outcome::Allowed } else { Outcome::Denied }
            };
            wrong = outcomes.into_iter().filter(is_wrong).collect();
            held = if wrong.is_empty() { held + 1 } else { 0 };
            if wrong.iter().any(|(_, outcome)| *outcome == Outcome::Denied) {
                silence = longest.min(2 * silence);
            }
            if held >= 2 {
                Ok(())
            } else {
                Err(format!("{} of {} cells are wrong", wrong.len(), cells.len()))
            }
        });
        result.map_err(|error| Error::Unfit(format!("{error}\n{}", self.report(&wrong))))
    }

    fn report(&self, wrong: &[(&Cell, Outcome)]) -> String {
        let policies: String =
            self.policies.iter().map(|(key, spec)| format!("  policy {key}: {spec}\n")).collect();
        let nodes = self.bed.nodes().into_iter();
        let nodes = nodes.filter_map(|node| Some((node.clone(), self.rules_on(&node).ok()?))).collect();
        let few = wrong.iter().take(5);
        let cells: String = few
            .map(|(cell, outcome)| format!("  packets: {outcome:?}: {}", cell.explain(&self.cluster, &nodes)))
            .collect();
        format!("{policies}{cells}")
    }

    /// The rules that a node's enforcer has.
    fn rules_on(&self, node: &str) -> Result<NodeView> {
        let (system, field) = ("durward-system", format!("spec.nodeName={node}"));
        let enforcers = ["-l", "app.kubernetes.io/name=durward-enforcer", "--field-selector", &field];
        let pods = self.bed.json(&[&["-n", system, "get", "pods"], &enforcers[..]].concat())?;
        let name = pods["items"][0]["metadata"]["name"].as_str().unwrap_or_default();
        let dump = self.bed.exec(&format!("{system}/{name}"), &["/durward-enforcer", "dump"])?;
        let dump: Value = serde_json::from_str(&dump).map_err(|error| Error::Unfit(error.to_string()))?;
        NodeView::deserialize(&dump["view"]).map_err(|error| Error::Unfit(error.to_string()))
    }

    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (from, source) in &self.pods {
            for (to, target) in &self.pods {
                let families: [[IpAddr; 2]; 2] = [
                    [source.pod.v4.into(), target.pod.v4.into()],
                    [source.pod.v6.into(), target.pod.v6.into()],
                ];
                for [source, target] in families {
                    for (protocol, port) in PROBES {
                        let (from, to) = (from.clone(), to.clone());
                        cells.push(Cell { from, source, to, target, protocol, port });
                    }
                }
            }
        }
        cells
    }

    /// All connections at once: a thread for each pod, since a thread is in one network namespace.
    fn round<'c>(&self, cells: &'c [Cell], silence: Duration) -> Result<BTreeMap<&'c Cell, Outcome>> {
        let rounds: Vec<Result<Vec<_>>> = std::thread::scope(|scope| {
            let threads = self.pods.iter().map(|(key, listening)| {
                let own: Vec<_> = cells.iter().filter(|cell| cell.from == *key).collect();
                scope.spawn(move || listening.pod.network.run(|| probe_all(own, silence)))
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        Ok(rounds.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn listen(&mut self, key: &Key) -> Result<()> {
        let pod = self.bed.pod(&key.to_string())?;
        let servers: Result<_> = PORTS.iter().map(|&port| Server::start(&pod.network, port)).collect();
        self.pods.insert(key.clone(), Listening { pod, _servers: servers? });
        self.tell_pod(key)
    }

    /// Labels a pod as kubectl is told to (`key=value`, or `key-`), for API server and oracle.
    fn label_pod(&mut self, key: &Key, label: &str) -> Result<()> {
        self.bed.kubectl(&["-n", &key.namespace, "label", "pod", &key.name, label, "--overwrite"])?;
        self.tell_pod(key)
    }

    /// Tells the oracle of a pod what the API server says of it.
    fn tell_pod(&mut self, key: &Key) -> Result<()> {
        let object = self.bed.json(&["-n", &key.namespace, "get", "pod", &key.name])?;
        let pod = &self.pods[key].pod;
        let found = object["metadata"]["labels"].as_object().into_iter().flatten();
        let found: Vec<_> =
            found.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())).collect();
        self.cluster.apply(Event::Pod(durward_engine::object::Pod {
            uid: pod.uid.as_str().into(),
            key: key.clone(),
            labels: labels(&found),
            addresses: vec![pod.v4.into(), pod.v6.into()],
            node: Some(pod.node.as_str().into()),
            host_network: false,
            completed: false,
            config_hash: None,
            ports: read::named_ports(&object["spec"]["containers"][0]["ports"]),
        }));
        Ok(())
    }

    fn say_namespace(&mut self, name: &str, own: &[(&str, &str)]) {
        let namespace = Namespace { name: name.into(), labels: labels(own), denies_logged: false };
        self.cluster.apply(Event::Namespace(namespace));
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    Arc::new(pairs.iter().map(|&(key, value)| (key.into(), value.into())).collect())
}

/// Pods of one name are on the same node in two namespaces, so that every pair of places occurs.
fn manifest(key: &Key) -> Value {
    let place = |all: [&str; 3], own: &str| all.iter().position(|one| *one == own).unwrap_or_default();
    let node = 1 + (place(NAMESPACES, &key.namespace) + place(PODS, &key.name)) % 2;
    let ports: Vec<_> = PORTS
        .iter()
        .flat_map(|port| ["TCP", "UDP"].map(|protocol| (port, protocol)))
        .map(|(port, protocol)| {
            let name = format!("serve-{port}-{}", protocol.to_lowercase());
            json!({"name": name, "containerPort": port, "protocol": protocol})
        })
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": key.namespace, "name": key.name, "labels": {"pod": key.name}},
        "spec": {
            "nodeName": format!("n{node}"), "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "pause", "image": "bed.local/pause:1", "imagePullPolicy": "Never", "ports": ports,
            }],
        },
    })
}

fn probe_all(cells: Vec<&Cell>, silence: Duration) -> Vec<(&Cell, Outcome)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut probes = JoinSet::new();
        for (number, cell) in cells.iter().enumerate() {
            let probe = Probe { protocol: cell.protocol, target: SocketAddr::new(cell.target, cell.port) };
            probes.spawn(async move { (number, probe.outcome_within(silence).await) });
        }
        let outcomes = probes.join_all().await;
        outcomes.into_iter().map(|(number, outcome)| (cells[number], outcome)).collect()
    })
}
