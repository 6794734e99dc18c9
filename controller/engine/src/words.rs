//! Labels, selectors and named ports in numbers: each string, and each list, is kept once. Pure.

use std::sync::Arc;

use durward_proto::Digester;
use smallvec::SmallVec;

use crate::object::{self, NamedPort, Operator, Requirement};
use crate::sorted::{Few, few_sorted};
use crate::table::{Belongs, LabelsId, PortsId, SelectorId, Table, WordId};

/// A selector's requirement of one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Need {
    pub(crate) key: WordId,
    pub(crate) test: Test,
}

/// What must hold for the label. Values are sorted, each once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Test {
    In(Few<WordId>),
    NotIn(Few<WordId>),
    Exists,
    Missing,
}

impl Test {
    fn values(&self) -> &[WordId] {
        match self {
            Self::In(values) | Self::NotIn(values) => values,
            Self::Exists | Self::Missing => &[],
        }
    }
}

/// Keys and values, sorted by key.
pub(crate) type LabelList = Box<[(WordId, WordId)]>;

impl Belongs for [(WordId, WordId)] {}
impl Belongs for [Need] {}
impl Belongs for [NamedPort] {}

/// Strings of labels, and what is made of them.
#[derive(Debug, Default)]
pub(crate) struct Words {
    strings: Table<WordId, Arc<str>, ()>,
    pub(crate) labels: Table<LabelsId, LabelList, ()>,
    /// Sorted and each need once, so that equal selectors are one.
    pub(crate) selectors: Table<SelectorId, Box<[Need]>, ()>,
    pub(crate) ports: Table<PortsId, Box<[NamedPort]>, ()>,
}

impl Words {
    fn word(&mut self, text: &Arc<str>) -> WordId {
        self.strings.find(&**text).unwrap_or_else(|| self.strings.insert(text.clone(), ()))
    }

    pub(crate) fn labels(&mut self, labels: &object::Labels) -> LabelsId {
        let mut list: SmallVec<[_; 16]> =
            labels.iter().map(|(key, value)| (self.word(key), self.word(value))).collect();
        list.sort_unstable();
        if let Some(found) = self.labels.find(&*list) {
            return found;
        }
        for word in list.iter().flat_map(|&(key, value)| [key, value]) {
            self.strings.hold(word);
        }
        self.labels.insert((*list).into(), ())
    }

    pub(crate) fn ports(&mut self, mut ports: Vec<NamedPort>) -> PortsId {
        ports.sort_unstable();
        ports.dedup();
        self.ports.find(&*ports).unwrap_or_else(|| self.ports.insert(ports.into(), ()))
    }

    pub(crate) fn selector(&mut self, selector: &object::Selector) -> SelectorId {
        let needs: Few<_> = few_sorted(selector.0.iter().map(|requirement| self.need(requirement)).collect());
        if let Some(found) = self.selectors.find(&*needs) {
            return found;
        }
        for Need { key, test } in &needs {
            self.strings.hold(*key);
            test.values().iter().for_each(|&value| self.strings.hold(value));
        }
        self.selectors.insert(needs.into_iter().collect(), ())
    }

    fn need(&mut self, Requirement { key, operator }: &Requirement) -> Need {
        let mut values = |values: &[Arc<str>]| {
            let mut values: Few<_> = few_sorted(values.iter().map(|value| self.word(value)).collect());
            values.shrink_to_fit();
            values
        };
        let test = match operator {
            Operator::In(of) => Test::In(values(of)),
            Operator::NotIn(of) => Test::NotIn(values(of)),
            Operator::Exists => Test::Exists,
            Operator::DoesNotExist => Test::Missing,
        };
        Need { key: self.word(key), test }
    }

    pub(crate) fn selects(&self, selector: SelectorId, labels: &[(WordId, WordId)]) -> bool {
        self.selectors.key(selector).iter().all(|Need { key, test }| {
            let value = labels.binary_search_by_key(key, |(key, _)| *key).map(|at| labels[at].1);
            match (test, value) {
                (Test::In(values), Ok(value)) => values.binary_search(&value).is_ok(),
                (Test::NotIn(values), Ok(value)) => values.binary_search(&value).is_err(),
                (Test::Exists, value) => value.is_ok(),
                (Test::Missing, value) => value.is_err(),
                (Test::In(_), Err(_)) => false,
                (Test::NotIn(_), Err(_)) => true,
            }
        })
    }

    /// Adds a selector's content to a digest: in the order of the strings, as numbers are different in each
    /// engine.
    pub(crate) fn digest(&self, selector: SelectorId, into: &mut Digester) {
        let text = |word: &WordId| &**self.strings.key(*word);
        let needs = self.selectors.key(selector).iter();
        let mut sorted: Few<(&str, u8, Few<&str>)> = needs
            .map(|Need { key, test }| {
                let code = match test {
                    Test::In(_) => 0,
                    Test::NotIn(_) => 1,
                    Test::Exists => 2,
                    Test::Missing => 3,
                };
                let mut values: Few<_> = test.values().iter().map(text).collect();
                values.sort_unstable();
                (text(key), code, values)
            })
            .collect();
        sorted.sort_unstable();
        into.field(&(sorted.len() as u64).to_be_bytes());
        for (key, code, values) in sorted {
            into.field(key.as_bytes());
            into.field(&[code]);
            into.field(&(values.len() as u64).to_be_bytes());
            values.into_iter().for_each(|value| into.field(value.as_bytes()));
        }
    }

    /// Frees what nobody holds any more, and lets go of what that held.
    pub(crate) fn collect(&mut self) {
        for (_, labels, ()) in self.labels.collect() {
            for word in labels.iter().flat_map(|&(key, value)| [key, value]) {
                self.strings.release(word);
            }
        }
        for (_, needs, ()) in self.selectors.collect() {
            for Need { key, test } in &needs {
                self.strings.release(*key);
                test.values().iter().for_each(|&value| self.strings.release(value));
            }
        }
        self.ports.collect();
        self.strings.collect();
    }
}
