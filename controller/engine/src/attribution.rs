//! The exact lists of policies behind verdicts. Pure.

use durward_proto::{Attribution, AttributionId, PolicyList};
use smallvec::SmallVec;

use crate::list::{self, Branch, FAN, LeafOf};
use crate::object::Key;
use crate::rules::{Name, Rules};
use crate::set::Sets;
use crate::sorted::{Few, few_sorted, sorted};
use crate::table::{AttributionIndex, BodyId};

/// What is kept of an attribution.
#[derive(Debug)]
pub(crate) struct AttributionState {
    /// How many policies it has.
    pub(crate) count: u32,
    pub(crate) id: AttributionId,
    /// How often it was put together to be told.
    times: u32,
    /// What is told of it, if that is not rather put together each time.
    told: Option<Box<PolicyList>>,
}

/// Of up to so many policies no list is kept but for those that are told often: most are of pods that few nodes have.
const FEW: usize = 4;

/// How often such a list is told before it is kept.
const OFTEN: u32 = 3;

/// How many such lists are kept.
const MOST: usize = 32_768;

impl AttributionState {
    /// Whether what is told of it is kept only because it is told often.
    pub(crate) fn is_often_told(&self) -> bool {
        self.times > OFTEN && self.told.is_some()
    }
}

impl Sets {
    /// The attribution to these policies, which are of one leaf.
    pub(crate) fn attribution(
        &mut self,
        rules: &mut Rules,
        bodies: impl IntoIterator<Item = BodyId>,
    ) -> AttributionIndex {
        let names: Few<_> = bodies.into_iter().map(|body| rules.bodies.key(body).name).collect();
        self.attribution_to(rules, &few_sorted(names))
    }

    /// The attribution to these policies, sorted and each once.
    fn attribution_to(&mut self, rules: &mut Rules, names: &[Name]) -> AttributionIndex {
        if let Some(attribution) = self.attributions.find(&LeafOf(names)) {
            return attribution;
        }
        names.iter().for_each(|name| rules.policies.hold(name.policy));
        let ordered = by_key(rules, names);
        let fields = ordered.iter().map(|&Name { policy, logged }| {
            let Key { namespace, name } = rules.named(policy);
            (&**namespace, &**name, logged)
        });
        let (count, id) = (names.len(), AttributionId::of(fields));
        let told = (count > FEW).then(|| Box::new(attribution(rules, &ordered).into()));
        let branch = Branch::Leaf(SmallVec::from_slice(&ordered));
        self.attributions.insert(branch, AttributionState { count: count as u32, id, times: 0, told })
    }

    /// The attribution to all policies of these, which are of the branches of one list.
    pub(crate) fn joined(
        &mut self,
        rules: &mut Rules,
        children: [Option<AttributionIndex>; FAN],
    ) -> Option<AttributionIndex> {
        let present = || children.iter().copied().flatten();
        let count: u32 = present().map(|child| self.attributions[child].count).sum();
        if count == 0 {
            return None;
        }
        if count as usize <= self.limits.policies_per_leaf {
            let names = present().flat_map(|child| list::items(&self.attributions, child)).collect();
            return Some(self.attribution_to(rules, &sorted(names)));
        }
        let branch = Branch::Inner(Box::new(children));
        if let Some(attribution) = self.attributions.find(&branch) {
            return Some(attribution);
        }
        present().for_each(|child| self.attributions.hold(child));
        let list = PolicyList::of_parts(present().map(|child| self.attributions[child].id));
        let state = AttributionState { count, id: list.id(), times: 0, told: Some(Box::new(list)) };
        Some(self.attributions.insert(branch, state))
    }

    /// What is told of an attribution.
    pub(crate) fn policy_list(&mut self, rules: &Rules, of: AttributionIndex) -> PolicyList {
        if let Some(told) = &self.attributions[of].told {
            return (**told).clone();
        }
        let list = match self.attributions.key(of) {
            Branch::Leaf(names) => PolicyList::from(attribution(rules, names)),
            Branch::Inner(_) => unreachable!("what is made of parts is kept"),
        };
        let state = &mut self.attributions[of];
        state.times = state.times.saturating_add(1);
        if state.times > OFTEN && self.often_told < MOST {
            state.told = Some(Box::new(list.clone()));
            self.often_told += 1;
        }
        list
    }
}

/// The names must be in the order of [`by_key`].
fn attribution(rules: &Rules, names: &[Name]) -> Attribution {
    Attribution(names.iter().map(|&name| rules.said(name)).collect())
}

/// Names in the order in which attributions are told.
fn by_key(rules: &Rules, names: &[Name]) -> Few<Name> {
    let mut names = Few::from_slice(names);
    let key = |name: &Name| (rules.named(name.policy), name.logged);
    names.sort_unstable_by(|one, other| key(one).cmp(&key(other)));
    names
}
