//! Addresses of nodes whose rules mention the same, blocks included, worked out once. Pure.

use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;

use durward_proto::AtomId;
use hashbrown::{DefaultHashBuilder, HashMap};

use crate::table::{AtomIndex, TermId};
use crate::terms::Terms;

/// Kinds of nodes that were told all addresses.
#[derive(Debug, Default)]
pub(crate) struct Alike {
    hasher: DefaultHashBuilder,
    /// By the hash of what their rules mention: what that is, and those addresses. None while there was one such node.
    kinds: HashMap<u64, Option<Box<Kind>>>,
    /// How many addresses there are.
    size: usize,
}

/// How many addresses are kept.
const MOST: usize = 131_072;

#[derive(Debug)]
struct Kind {
    terms: Box<[TermId]>,
    found: Found,
}

/// Addresses, sorted, and how many of them have each atom; there may be the same atom again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) addresses: Vec<(IpAddr, AtomId)>,
    pub(crate) atoms: Vec<(AtomIndex, i32)>,
}

impl Alike {
    /// By which nodes whose rules mention this are found.
    pub(crate) fn kind(&self, terms: &Terms) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        terms.iter().for_each(|term| term.hash(&mut hasher));
        hasher.finish()
    }

    /// The addresses of nodes whose rules mention this.
    pub(crate) fn find(&self, kind: u64, terms: &Terms) -> Option<&Found> {
        let known = self.kinds.get(&kind)?.as_ref()?;
        terms.iter().eq(known.terms.iter().copied()).then_some(&known.found)
    }

    /// A node was told these. Those of the second of a kind are kept: there may be more.
    pub(crate) fn told(&mut self, kind: u64, terms: &Terms, found: &Found) {
        let is_second = self.kinds.contains_key(&kind);
        if is_second {
            if self.size + found.addresses.len() > MOST {
                return;
            }
            self.size += found.addresses.len();
        }
        let known = || Box::new(Kind { terms: terms.iter().collect(), found: found.clone() });
        self.kinds.insert(kind, is_second.then(known));
    }

    /// Something may have changed.
    pub(crate) fn clear(&mut self) {
        (self.kinds, self.size) = Default::default();
    }
}
