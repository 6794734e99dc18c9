//! What is written down of passes: the book, problems, and how long pods ran before they were attached.
//! Reads the clock, and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use durward_plan::Numbers;
use durward_proto::{Frontend, LateAttach, Leaves, NodeView, Pod, PodUid, Service};
use nix::time::{ClockId, clock_gettime};

use crate::book::{Book, Endpoint, ServiceName};
use crate::endpoints::Findings;
use crate::metrics::Metrics;
use crate::services::Judging;
use crate::status::{Problem, Status};

/// How long policies and pods are remembered that are gone: verdicts of theirs are still on their way to
/// the log.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// What is remembered from pass to pass.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// Attributions by number; since when they are not in the view, if they are not.
    attributions: HashMap<u32, (Leaves, Option<Instant>)>,
    /// Pods by interface, likewise.
    endpoints: HashMap<u32, (Endpoint, Option<Instant>)>,
    /// Services by frontend, likewise.
    services: HashMap<Frontend, (ServiceName, Option<Instant>)>,
}

impl Recorder {
    /// The book for a view that the kernel has.
    pub(super) fn book(
        &mut self,
        view: &NodeView,
        findings: &Findings,
        numbers: &Numbers,
        judging: Judging,
    ) -> Book {
        let now = Instant::now();
        // Parts of lists have no numbers. A list is looked up once: its number means it forever.
        let attributions: Vec<_> = view
            .attributions
            .keys()
            .filter_map(|&id| {
                let number = numbers.attribution(id)?;
                let known = self.attributions.get(&number).map(|(list, _)| list.clone());
                Some((number, known.or_else(|| view.leaves(id))?))
            })
            .collect();
        let by_name = by_name(view);
        let endpoints = findings.found.iter().filter_map(|(&ifindex, found)| {
            let &(uid, pod) = by_name.get(found.pod.as_ref()?)?;
            let told = Some(&pod.addresses).filter(|told| !told.is_empty());
            let endpoint = Endpoint {
                uid: uid.clone(),
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                addresses: told.unwrap_or(&found.addresses).clone(),
                denies_logged: pod.denies_logged,
            };
            Some((ifindex, endpoint))
        });
        remember(&mut self.attributions, attributions.into_iter(), now);
        remember(&mut self.endpoints, endpoints, now);
        let name = |service: &Service| ServiceName {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        };
        let services = view.services.iter().map(|(&frontend, service)| (frontend, name(service)));
        remember(&mut self.services, services, now);
        Book {
            attributions: self
                .attributions
                .iter()
                .map(|(&number, (list, _))| (number, list.clone()))
                .collect(),
            endpoints: self.endpoints.iter().map(|(&ifindex, (pod, _))| (ifindex, pod.clone())).collect(),
            services: self.services.iter().map(|(&frontend, (name, _))| (frontend, name.clone())).collect(),
            host: findings.host.clone(),
            judging,
            logging: view.logging,
        }
    }

    /// An interface was attached: its pod ran without it until now.
    pub(super) fn bound(&self, ifindex: u32, findings: &Findings, status: &Status, metrics: &Metrics) {
        let pod = findings.found.get(&ifindex).and_then(|found| found.pod.clone());
        let (Some(pod), Some(&started)) = (pod, findings.started_ticks.get(&ifindex)) else { return };
        let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from) else { return };
        // The kernel shows user space 100 ticks a second, whatever its own clock does.
        let open = now.saturating_sub(Duration::from_millis(started * 10));
        metrics.attach_delay.observe(open.as_secs_f64());
        tracing::info!(%pod, ifindex, open_ms = open.as_millis() as u64, "attached");
        status.late(LateAttach { pod, open_ms: open.as_millis() as u64 });
    }

    /// Says which pods are closed, and why.
    pub(super) fn tell_problems(
        &self,
        view: &NodeView,
        findings: &Findings,
        misfits: &BTreeSet<PodUid>,
        status: &Status,
    ) {
        let by_name = by_name(view);
        let mut unknown = BTreeSet::new();
        for (&ifindex, found) in &findings.found {
            let text = match &found.pod {
                None => format!(
                    "interface {ifindex}: the processes behind it say that they are of different pods; only its \
                     node's traffic passes"
                ),
                Some(pod) if !by_name.contains_key(pod) => format!(
                    "interface {ifindex} is pod {pod}'s, of which the controller has not told; only its node's \
                     traffic passes, unless --unknown-pods says otherwise"
                ),
                Some(_) => continue,
            };
            unknown.insert(ifindex);
            status.raise(Problem::Unknown(ifindex), text);
        }
        for uid in misfits {
            let name = view.pods.get(uid).map(|pod| format!("{}/{}", pod.namespace, pod.name));
            let name = name.unwrap_or_else(|| uid.to_string());
            let text = format!(
                "pod {name}: the kernel has no room for its rules, so only its node's traffic passes; fewer or \
                 simpler policies on this node would help"
            );
            status.raise(Problem::Misfit(uid.to_string()), text);
        }
        status.retain(|problem| match problem {
            Problem::Unknown(ifindex) => unknown.contains(ifindex),
            Problem::Misfit(uid) => misfits.contains(&PodUid::from(uid.as_str())),
            _ => true,
        });
    }
}

/// Puts what is there, and forgets what has been gone for long.
fn remember<K: Eq + Hash, T>(
    all: &mut HashMap<K, (T, Option<Instant>)>,
    there: impl Iterator<Item = (K, T)>,
    now: Instant,
) {
    for (_, gone) in all.values_mut() {
        gone.get_or_insert(now);
    }
    all.extend(there.map(|(key, value)| (key, (value, None))));
    all.retain(|_, (_, gone)| gone.is_none_or(|gone| now - gone < REMEMBERED));
}

/// Pods by what their cgroups are named by: their UID, and for static pods their configuration's hash.
fn by_name(view: &NodeView) -> BTreeMap<PodUid, (&PodUid, &Pod)> {
    let uids = view.pods.iter().map(|(uid, pod)| (uid.clone(), (uid, pod)));
    let hashes = view.pods.iter().filter_map(|(uid, pod)| Some((pod.config_name()?, (uid, pod))));
    hashes.chain(uids).collect()
}
