//! Who had an address at a time. Pure: the clock comes with each call.
//!
//! An answer says who has an address, and since when; it holds from then until it was asked for. An event is
//! named only by an answer that holds for the event's time, so that nobody is given another pod's deeds.

use std::collections::HashMap;
use std::net::IpAddr;

use durward_proto::{Identity, PodName, Workload};

/// By how much the controller's clock and ours may differ.
const SKEW_MS: i64 = 500;
/// How long after an event "nobody" is believed: the API server learns of a pod's address late.
const SETTLE_MS: i64 = 2_000;
/// How long an answer is kept that nobody asks for again.
const KEEP_MS: i64 = 60_000;
/// How many addresses are known at most.
const MAX_ADDRESSES: usize = 8192;

/// Who had an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A pod.
    Pod(PodName),
    /// No pod, or nobody can say: the address changed hands.
    Nobody,
    /// Not known yet: ask.
    Unknown,
}

/// From `since_ms` until `until_ms`, the address was this pod's, or nobody's.
#[derive(Clone, Debug)]
struct Span {
    since_ms: i64,
    until_ms: i64,
    pod: Option<PodName>,
}

/// What was answered.
#[derive(Debug, Default)]
pub struct Cache {
    /// The newest answer of each address, and the one before it.
    spans: HashMap<IpAddr, (Span, Option<Span>)>,
}

impl Cache {
    /// An answer to what was asked at `asked_ms`.
    pub fn learn(&mut self, address: IpAddr, identity: Identity, asked_ms: i64) {
        let Identity { pod, since_ms } = identity;
        let new = Span { since_ms, until_ms: asked_ms, pod };
        match self.spans.get_mut(&address) {
            Some((last, _)) if (last.since_ms, &last.pod) == (new.since_ms, &new.pod) => {
                last.until_ms = asked_ms.max(last.until_ms);
            }
            Some((last, before)) => *before = Some(std::mem::replace(last, new)),
            None => {
                self.forget(asked_ms);
                self.spans.insert(address, (new, None));
            }
        }
    }

    /// Who had the address then.
    pub fn at(&self, address: IpAddr, at_ms: i64) -> Name {
        let Some((last, before)) = self.spans.get(&address) else { return Name::Unknown };
        let holds = |span: &&Span| span.since_ms.saturating_add(SKEW_MS) <= at_ms && at_ms <= span.until_ms;
        match [Some(last), before.as_ref()].into_iter().flatten().find(holds) {
            Some(Span { pod: Some(pod), .. }) => Name::Pod(pod.clone()),
            Some(Span { pod: None, until_ms, .. }) if *until_ms < at_ms + SETTLE_MS => Name::Unknown,
            Some(_) => Name::Nobody,
            None if last.until_ms < at_ms => Name::Unknown,
            None => Name::Nobody,
        }
    }

    /// The workload of a pod whose name and address are known otherwise; none if it was not told yet.
    pub fn workload(&self, address: IpAddr, namespace: &str, name: &str) -> Option<Option<Workload>> {
        let (last, before) = self.spans.get(&address)?;
        let pods = [Some(last), before.as_ref()].into_iter().flatten().filter_map(|span| span.pod.as_ref());
        let mut same = pods.filter(|pod| (&*pod.namespace, &*pod.name) == (namespace, name));
        same.next().map(|pod| pod.workload.clone())
    }

    /// Makes room: what is old goes, and if that is not enough, the older half.
    fn forget(&mut self, now_ms: i64) {
        if self.spans.len() < MAX_ADDRESSES {
            return;
        }
        self.spans.retain(|_, (last, _)| last.until_ms.saturating_add(KEEP_MS) > now_ms);
        if self.spans.len() >= MAX_ADDRESSES {
            let mut times: Vec<_> = self.spans.values().map(|(last, _)| last.until_ms).collect();
            let middle = times.len() / 2;
            let (_, &mut median, _) = times.select_nth_unstable(middle);
            let mut left = middle;
            self.spans.retain(|_, (last, _)| {
                let keep = last.until_ms > median || (last.until_ms == median && left > 0);
                left = left.saturating_sub(usize::from(keep));
                keep
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn pod(name: &str) -> PodName {
        let workload = Workload { kind: "Deployment".into(), name: "w".into() };
        PodName { namespace: "shop".into(), name: name.into(), workload: Some(workload) }
    }

    fn known(answers: &[(Option<&str>, i64, i64)]) -> Cache {
        let mut cache = Cache::default();
        for &(name, since_ms, asked_ms) in answers {
            cache.learn(ADDRESS, Identity { pod: name.map(pod), since_ms }, asked_ms);
        }
        cache
    }

    #[test]
    fn a_pod_is_named_from_when_it_had_the_address_until_it_was_asked_for() {
        let cache = known(&[(Some("a"), 1000, 9000)]);
        let at = |ms| cache.at(ADDRESS, ms);
        assert_eq!([1499, 1500].map(at), [Name::Nobody, Name::Pod(pod("a"))]);
        assert_eq!([9000, 9001].map(at), [Name::Pod(pod("a")), Name::Unknown]);
        assert_eq!(cache.at([10, 0, 0, 2].into(), 5000), Name::Unknown);
    }

    #[test]
    fn asking_again_makes_the_answer_hold_longer() {
        let cache = known(&[(Some("a"), 1000, 9000), (Some("a"), 1000, 20_000)]);
        assert_eq!(cache.at(ADDRESS, 15_000), Name::Pod(pod("a")));
    }

    #[test]
    fn an_address_that_changed_hands_around_the_time_is_nobodys() {
        let cache = known(&[(Some("a"), 1000, 9000), (Some("b"), 12_000, 20_000)]);
        let names = [9000, 9001, 12_000, 12_499, 12_500].map(|ms| cache.at(ADDRESS, ms));
        let [a, b] = [Name::Pod(pod("a")), Name::Pod(pod("b"))];
        assert_eq!(names, [a, Name::Nobody, Name::Nobody, Name::Nobody, b]);
    }

    #[test]
    fn nobody_is_believed_once_the_api_server_must_have_learnt_of_a_new_pod() {
        let cache = known(&[(None, 0, 9000)]);
        assert_eq!([7000, 7001].map(|ms| cache.at(ADDRESS, ms)), [Name::Nobody, Name::Unknown]);
        let cache = known(&[(None, 0, 9000), (Some("late"), 8000, 9500)]);
        assert_eq!(cache.at(ADDRESS, 8800), Name::Pod(pod("late")));
    }

    #[test]
    fn a_workload_is_told_of_the_very_pod() {
        let cache = known(&[(Some("a"), 1000, 9000)]);
        assert_eq!(cache.workload(ADDRESS, "shop", "a"), Some(pod("a").workload));
        assert_eq!(cache.workload(ADDRESS, "shop", "b"), None);
        assert_eq!(cache.workload(ADDRESS, "other", "a"), None);
    }

    #[test]
    fn it_stays_small() {
        let mut cache = Cache::default();
        for bits in 0..3 * MAX_ADDRESSES as u32 {
            cache.learn(IpAddr::V4(bits.into()), Identity { pod: None, since_ms: 0 }, 7);
            assert!(cache.spans.len() <= MAX_ADDRESSES);
        }
        assert!(cache.spans.len() >= MAX_ADDRESSES / 2);
    }
}
