//! On which nodes the pods of large classes are. Pure.

use hashbrown::HashMap;

use crate::cluster::Member;
use crate::sorted::update;
use crate::table::{ClassId, NodeId};

/// So many pods make a class large; with half of them it is so no more.
const MANY: usize = 64;

/// Of each large class, how many of its pods each node has, sorted. So who concerns all of its nodes does not look at
/// all of its pods, which are far more.
#[derive(Debug, Default)]
pub(crate) struct Spread(HashMap<ClassId, Vec<(NodeId, u32)>>);

impl Spread {
    /// The nodes of a large class's pods, with how many each has; none of another's.
    pub(crate) fn nodes(&self, class: ClassId) -> Option<&[(NodeId, u32)]> {
        self.0.get(&class).map(Vec::as_slice)
    }

    /// The last of a class's pods has come.
    pub(crate) fn come(&mut self, class: ClassId, members: &[Member]) {
        let on = match self.0.get_mut(&class) {
            Some(nodes) => return count(nodes, members.last().and_then(|member| member.node), 1),
            None if members.len() < MANY => return,
            None => self.0.entry(class).or_default(),
        };
        members.iter().for_each(|member| count(on, member.node, 1));
    }

    /// One of a class's pods has gone from a node, and some are left.
    pub(crate) fn leave(&mut self, class: ClassId, node: Option<NodeId>, left: usize) {
        let Some(nodes) = self.0.get_mut(&class) else { return };
        count(nodes, node, -1);
        if left <= MANY / 2 {
            self.0.remove(&class);
        }
    }
}

fn count(nodes: &mut Vec<(NodeId, u32)>, node: Option<NodeId>, change: i32) {
    update(nodes, node.into_iter().map(|node| (node, change)), |_, before, change| {
        let now = before.copied().unwrap_or(0).checked_add_signed(change);
        now.filter(|&pods| pods > 0)
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Addresses;
    use crate::table::{Id, PodId};

    fn member(node: Option<usize>) -> Member {
        let addresses = Addresses::One(IpAddr::from([10, 0, 0, 1]));
        Member { pod: PodId::new(0), node: node.map(NodeId::new), addresses }
    }

    proptest! {
        #[test]
        fn a_large_class_is_where_its_pods_are(steps in vec((0..3_u8, prop::option::of(0..40_usize)), 0..400)) {
            let (mut spread, mut members) = (Spread::default(), vec![]);
            let class = ClassId::new(7);
            // More come at first, and more go at last.
            let more = |n: usize| u8::from(n < 200);
            for (n, (kind, node)) in steps.into_iter().enumerate() {
                if kind <= more(n) {
                    members.push(member(node));
                    spread.come(class, &members);
                } else if let Some(gone) = members.pop() {
                    spread.leave(class, gone.node, members.len());
                }
                let mut meant = BTreeMap::new();
                for node in members.iter().filter_map(|member| member.node) {
                    *meant.entry(node).or_insert(0) += 1;
                }
                if let Some(nodes) = spread.nodes(class) {
                    prop_assert!(nodes.iter().copied().eq(meant));
                }
                prop_assert!(spread.nodes(class).is_some() || members.len() < MANY);
                prop_assert!(spread.nodes(class).is_none() || members.len() > MANY / 2);
            }
        }
    }
}
