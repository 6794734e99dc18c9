//! Addresses of nodes whose rules mention the same, worked out once. Pure.

use std::net::IpAddr;

use durward_proto::AtomId;

use crate::table::{AtomIndex, TermId};
use crate::terms::Terms;

/// What the rules of a node mention that was told all addresses, and those addresses once another's mention the same.
#[derive(Debug, Default)]
pub(crate) struct Alike {
    terms: Vec<TermId>,
    pub(crate) found: Option<Found>,
}

/// Addresses, sorted, and how many of them have each atom; there may be the same atom again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) addresses: Vec<(IpAddr, AtomId)>,
    pub(crate) atoms: Vec<(AtomIndex, i32)>,
}

impl Alike {
    /// Whether the last node's terms were these. If not, they are the last node's now.
    pub(crate) fn is_alike(&mut self, terms: &Terms) -> bool {
        let is_alike = terms.iter().eq(self.terms.iter().copied());
        if !is_alike {
            *self = Self { terms: terms.iter().collect(), found: None };
        }
        is_alike
    }

    /// Something may have changed.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
