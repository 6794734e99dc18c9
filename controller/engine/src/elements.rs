//! What an address matches, as a short list. Pure.

use std::hash::{Hash, Hasher};
use std::ops::Deref;

use hashbrown::Equivalent;

use crate::table::{Belongs, Id, TermId};

/// A term that an address matches, and the number of the named port if the term has one (else 0).
pub(crate) type Element = (TermId, u16);

/// Elements, sorted and each once. Most addresses match one or two, so that those have no box.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    One(Element),
    Two([Element; 2]),
    Other(Box<[Element]>),
}

impl From<&[Element]> for Elements {
    fn from(elements: &[Element]) -> Self {
        match *elements {
            [one] => Self::One(one),
            [one, two] => Self::Two([one, two]),
            _ => Self::Other(elements.into()),
        }
    }
}

impl Deref for Elements {
    type Target = [Element];

    fn deref(&self) -> &[Element] {
        match self {
            Self::One(element) => std::slice::from_ref(element),
            Self::Two(elements) => elements,
            Self::Other(elements) => elements,
        }
    }
}

impl PartialEq for Elements {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Elements {}

impl Hash for Elements {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl Belongs for [Element] {
    fn owner(&self) -> Option<usize> {
        Some(self.first()?.0.index())
    }
}

impl Belongs for Elements {
    fn owner(&self) -> Option<usize> {
        (**self).owner()
    }
}

impl Equivalent<Elements> for [Element] {
    fn equivalent(&self, elements: &Elements) -> bool {
        *self == **elements
    }
}

/// A thing and elements: what is said by the one of what matches the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Of<T>(pub(crate) T, pub(crate) Elements);

impl<T: Id> Belongs for Of<T> {
    fn owner(&self) -> Option<usize> {
        Some(self.0.index())
    }
}

/// To look for an [`Of`].
#[derive(Hash)]
pub(crate) struct Asked<'a, T>(pub(crate) T, pub(crate) &'a [Element]);

impl<T: Eq> Equivalent<Of<T>> for Asked<'_, T> {
    fn equivalent(&self, of: &Of<T>) -> bool {
        self.0 == of.0 && *self.1 == *of.1
    }
}

impl<T: Id> Belongs for Asked<'_, T> {
    fn owner(&self) -> Option<usize> {
        Some(self.0.index())
    }
}
