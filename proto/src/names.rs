//! Names by content. Pure.
//!
//! Sets, atoms and attributions have no numbers on the wire: each is named by a digest of what it
//! is, so that any controller gives the same thing the same name, and a node that was away finds
//! what it already has.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The first 128 bits of a SHA-256 over a canonical encoding of content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

/// The order of the bytes. As one number they are compared at once: whatever a view holds is sorted by digests.
impl Ord for Digest {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for Digest {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Digest {
    /// The digest of a sequence of fields.
    ///
    /// `kind` separates digests of different things; every field is preceded by its length, so that
    /// no two sequences of fields have the same encoding.
    pub fn of<T: AsRef<[u8]>>(kind: &str, fields: impl IntoIterator<Item = T>) -> Self {
        let mut digester = Digester::new(kind);
        for bytes in fields {
            digester.field(bytes.as_ref());
        }
        digester.digest()
    }
}

/// A digest in the making: field after field, as [`Digest::of`] takes them.
#[derive(Clone, Debug)]
pub struct Digester(Sha256);

impl Digester {
    /// A digest of a thing of this kind, with no field yet.
    pub fn new(kind: &str) -> Self {
        let mut digester = Self(Sha256::new());
        digester.field(kind.as_bytes());
        digester
    }

    /// Adds a field.
    pub fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
    }

    /// The digest of all fields.
    pub fn digest(self) -> Digest {
        let mut first = [0; 16];
        first.copy_from_slice(&self.0.finalize()[..16]);
        Digest(first)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Eight hex digits tell digests apart in a failing test; the whole would bury the difference.
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let refuse = || serde::de::Error::custom(format!("a digest is 32 hex digits, not {text:?}"));
        if text.len() != 32 || !text.is_ascii() {
            return Err(refuse());
        }
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| refuse())?;
        }
        Ok(Self(bytes))
    }
}

macro_rules! content_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

content_name! {
    /// Names a policy set: the direction, the policies with their rules, and the pod's bindings of
    /// named ports. Another content is another name, so a set's rules never change under its name;
    /// its rows do, as peers come and go.
    SetId
}
content_name! {
    /// Names a class of remote addresses: those that the same peers of this node's policies match.
    AtomId
}
content_name! {
    /// Names an exact list of policies.
    AttributionId
}

/// A pod's UID, as the API server gave it (for a static pod, the UID of its mirror). It is some text, which nobody has
/// reason to look into, but in fact a UUID, and as such takes no more than that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Cow<str>", into = "String")]
pub struct PodUid(Uid);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Uid {
    /// As text it has hyphens, and small letters.
    Uuid(Uuid),
    Other(Arc<str>),
}

impl From<&str> for PodUid {
    fn from(uid: &str) -> Self {
        let uuid = Uuid::try_parse(uid).ok();
        let same = |uuid: &Uuid| *uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *uid;
        Self(uuid.filter(same).map_or_else(|| Uid::Other(uid.into()), Uid::Uuid))
    }
}

impl From<Cow<'_, str>> for PodUid {
    fn from(uid: Cow<'_, str>) -> Self {
        Self::from(&*uid)
    }
}

impl From<PodUid> for String {
    fn from(uid: PodUid) -> Self {
        uid.to_string()
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Uid::Uuid(uuid) => uuid.hyphenated().fmt(f),
            Uid::Other(text) => text.fmt(f),
        }
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_the_text_that_it_was_made_of() {
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        let others = ["", "u", "0123456789abcdef0123456789abcdef"].map(str::to_owned);
        let disguised =
            [uuid.to_uppercase(), format!("{{{uuid}}}"), format!("urn:uuid:{uuid}"), format!("{uuid}0")];
        for text in others.into_iter().chain(disguised) {
            let uid = PodUid::from(&*text);
            assert_eq!(uid.to_string(), text);
            assert!(matches!(uid.0, Uid::Other(_)), "{text}");
            assert_ne!(uid, PodUid::from(uuid));
        }
        let uid = PodUid::from(uuid);
        assert_eq!(uid.to_string(), uuid);
        assert!(matches!(uid.0, Uid::Uuid(_)));
        assert_eq!(size_of_val(&uid), 24, "no more than an identifier of 16 bytes and what it is");
    }

    #[test]
    fn a_digest_tells_apart_how_its_content_is_divided() {
        assert_ne!(Digest::of("x", ["ab", "c"]), Digest::of("x", ["a", "bc"]));
        assert_ne!(Digest::of("x", ["a"]), Digest::of("y", ["a"]));
        assert_eq!(Digest::of("x", ["a"]), Digest::of("x", ["a"]));
    }

    #[test]
    fn a_digest_is_that_of_all_fields_however_long_they_are() {
        let long = [b'x'; 300];
        for length in 0..=long.len() {
            let fields = [&long[..length], b"y", &long[..length]];
            let mut whole = Sha256::new();
            for field in [&b"kind"[..]].iter().chain(&fields) {
                whole.update((field.len() as u64).to_be_bytes());
                whole.update(field);
            }
            assert_eq!(Digest::of("kind", fields).0[..], whole.finalize()[..16], "{length}");
        }
    }

    #[test]
    fn a_digest_is_written_whole_as_hex() {
        let digest = Digest(*b"0123456789abcdef");
        assert_eq!(digest.to_string(), "30313233343536373839616263646566");
    }
}
