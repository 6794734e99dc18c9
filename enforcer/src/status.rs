//! What the enforcer has to say of itself, kept in one place for readiness, metrics and the report. Pure.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use durward_proto::LateAttach;

/// How many pods that ran before they were attached wait for the next report; more are only counted.
const LATE_LIMIT: usize = 1000;

/// What stands in the way of full enforcement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// The controller cannot be reached, or what it says cannot be understood.
    Controller,
    /// The kernel does not hold the newest view yet.
    Apply,
    /// A pod's rules do not fit in the kernel.
    Misfit(String),
    /// An interface is a pod's, but nobody knows which.
    Unknown(u32),
    /// Pods cannot be found.
    Endpoints,
    /// Nobody sees on this node which backend of a Service is meant.
    Services,
    /// The kernel does not know all places where Services are called.
    Frontends,
    /// The host's connection tracking could not be asked to forget a new pod's addresses.
    Conntrack,
    /// Metrics and health cannot be asked for.
    Listen,
    /// The log cannot be written.
    Log,
}

/// The enforcer's state, for people.
#[derive(Debug, Default)]
pub struct Status(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    applied: bool,
    problems: BTreeMap<Problem, String>,
    late: Vec<LateAttach>,
}

impl Status {
    /// Something stands in the way; `text` says what, and what to look at.
    pub fn raise(&self, problem: Problem, text: impl ToString) {
        let text = text.to_string();
        let before = self.state().problems.insert(problem.clone(), text.clone());
        if before.as_ref() != Some(&text) {
            tracing::warn!(?problem, "{text}");
        }
    }

    /// It does not any more.
    pub fn clear(&self, problem: &Problem) {
        if self.state().problems.remove(problem).is_some() {
            tracing::info!(?problem, "solved");
        }
    }

    /// Forgets the problems of one kind that are not among these.
    pub fn retain(&self, keep: impl Fn(&Problem) -> bool) {
        self.state().problems.retain(|problem, _| keep(problem));
    }

    /// Everything that stands in the way.
    pub fn problems(&self) -> Vec<String> {
        self.state().problems.values().cloned().collect()
    }

    /// Whether the kernel holds a whole view of the controller that now serves us.
    pub fn set_applied(&self, applied: bool) {
        self.state().applied = applied;
    }

    /// Why the enforcer is not ready; none if it is: in sync, and the kernel has it.
    pub fn unready(&self) -> Option<String> {
        let state = self.state();
        let why = [Problem::Controller, Problem::Apply];
        let why = why.iter().find_map(|problem| state.problems.get(problem)).cloned();
        why.or_else(|| (!state.applied).then(|| "no whole view is in the kernel yet".to_owned()))
    }

    /// A pod ran before it was attached.
    pub fn late(&self, late: LateAttach) {
        let mut state = self.state();
        if state.late.len() < LATE_LIMIT {
            state.late.push(late);
        }
    }

    /// The pods that ran before they were attached, since this was asked last.
    pub fn take_late(&self) -> Vec<LateAttach> {
        std::mem::take(&mut self.state().late)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole after each statement: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
