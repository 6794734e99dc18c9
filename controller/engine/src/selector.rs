//! Label selectors: one form for equal ones, and an index of many. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::object::{Labels, Operator, Requirement, Selector};

impl Selector {
    /// The same selector with everything sorted and said once.
    pub(crate) fn canonical(&self) -> Self {
        let sorted = |values: &[Arc<str>]| {
            let mut values = values.to_vec();
            values.sort_unstable();
            values.dedup();
            values
        };
        let mut requirements = self.0.clone();
        for requirement in &mut requirements {
            match &mut requirement.operator {
                Operator::In(values) | Operator::NotIn(values) => *values = sorted(values),
                Operator::Exists | Operator::DoesNotExist => {}
            }
        }
        requirements.sort_unstable();
        requirements.dedup();
        Self(requirements)
    }

    pub(crate) fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|Requirement { key, operator }| {
            let value = labels.get(key);
            match operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    /// The fields of its content, for a digest.
    pub(crate) fn fields(&self, into: &mut Vec<Vec<u8>>) {
        into.push((self.0.len() as u64).to_be_bytes().to_vec());
        for Requirement { key, operator } in &self.0 {
            let (code, values): (u8, &[Arc<str>]) = match operator {
                Operator::In(values) => (0, values),
                Operator::NotIn(values) => (1, values),
                Operator::Exists => (2, &[]),
                Operator::DoesNotExist => (3, &[]),
            };
            into.extend([key.as_bytes().to_vec(), vec![code], (values.len() as u64).to_be_bytes().to_vec()]);
            into.extend(values.iter().map(|value| value.as_bytes().to_vec()));
        }
    }
}

/// What labels must have for a selector to be worth trying.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Anchor {
    Nothing,
    Key(Arc<str>),
    Label(Arc<str>, Arc<str>),
}

/// Many selectors, filed so that labels meet only those that mention them: each under the values of
/// its smallest `In`, else under a key that must exist, else with those that are always tried.
#[derive(Debug)]
pub(crate) struct SelectorIndex<I>(BTreeMap<Anchor, Vec<(I, Arc<Selector>)>>);

impl<I> Default for SelectorIndex<I> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<I: Copy + Eq> SelectorIndex<I> {
    pub(crate) fn insert(&mut self, id: I, selector: &Selector) {
        let shared = Arc::new(selector.clone());
        for anchor in anchors(selector) {
            self.0.entry(anchor).or_default().push((id, shared.clone()));
        }
    }

    pub(crate) fn remove(&mut self, id: I, selector: &Selector) {
        for anchor in anchors(selector) {
            if let Some(filed) = self.0.get_mut(&anchor) {
                filed.retain(|(found, _)| *found != id);
                if filed.is_empty() {
                    self.0.remove(&anchor);
                }
            }
        }
    }

    /// Adds the selectors that select these labels.
    pub(crate) fn selecting(&self, labels: &Labels, into: &mut Vec<I>) {
        let mut try_all = |anchor| {
            let filed = self.0.get(&anchor).into_iter().flatten();
            into.extend(filed.filter(|(_, selector)| selector.selects(labels)).map(|(id, _)| *id));
        };
        try_all(Anchor::Nothing);
        for (key, value) in labels.iter() {
            try_all(Anchor::Key(key.clone()));
            try_all(Anchor::Label(key.clone(), value.clone()));
        }
    }
}

/// Where a selector is filed. Labels have at most one of these, so that it is found at most once.
fn anchors(selector: &Selector) -> Vec<Anchor> {
    let smallest = selector.0.iter().filter_map(|requirement| match &requirement.operator {
        Operator::In(values) => Some((&requirement.key, values)),
        _ => None,
    });
    if let Some((key, values)) = smallest.min_by_key(|(_, values)| values.len()) {
        return values.iter().map(|value| Anchor::Label(key.clone(), value.clone())).collect();
    }
    let mut present = selector.0.iter().filter(|requirement| requirement.operator == Operator::Exists);
    vec![present.next().map_or(Anchor::Nothing, |requirement| Anchor::Key(requirement.key.clone()))]
}
