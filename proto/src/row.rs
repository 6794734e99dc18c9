//! Rows: what a set says of one atom, for every protocol and port. Pure.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::AttributionId;

/// A protocol and a destination port as one number, `protocol << 16 | port`.
///
/// A protocol without ports has port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PortKey(u32);

impl PortKey {
    /// The first key of all: protocol 0, port 0.
    pub const MIN: Self = Self(0);
    /// The last key of all: protocol 255, port 65535.
    pub const MAX: Self = Self(0x00ff_ffff);

    /// The key of a protocol (its IANA number) and a port.
    pub const fn new(protocol: u8, port: u16) -> Self {
        Self((protocol as u32) << 16 | port as u32)
    }

    /// The key with this number, if there is one: at most [`PortKey::MAX`].
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits <= Self::MAX.0 { Some(Self(bits)) } else { None }
    }

    /// The key as the number that the wire and the kernel carry.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The protocol's IANA number.
    pub const fn protocol(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The port.
    pub const fn port(self) -> u16 {
        self.0 as u16
    }

    /// The next key, if this is not the last.
    pub const fn next(self) -> Option<Self> {
        Self::from_bits(self.0 + 1)
    }
}

/// Whether a packet passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is dropped.
    Deny,
}

/// A verdict and the policies behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Act {
    /// Whether the packet passes.
    pub verdict: Verdict,
    /// On allow, every policy with a rule that permits it; on deny, every policy that isolates the
    /// pod in this direction.
    pub attribution: AttributionId,
}

/// From `start` on, up to the next step, `act` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Step {
    /// The first protocol and port of the step.
    pub start: PortKey,
    /// What holds there.
    pub act: Act,
}

/// A function from every protocol and port to an [`Act`]: steps, sorted, the first at
/// [`PortKey::MIN`], no two neighbours alike. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Step>", into = "Vec<Step>")]
pub struct Row(Arc<[Step]>);

/// Why steps are no row.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RowError {
    /// Some ports would have no verdict.
    #[error("a row's first step starts at {found:?}, not at 0: the ports before it have no verdict")]
    Start {
        /// Where the first step starts; none if there is no step.
        found: Option<u32>,
    },
    /// The steps are not in strictly rising order.
    #[error("a row's step {index} starts at {start:#x}, not after the one before it")]
    Order {
        /// Index of the step that is out of order.
        index: usize,
        /// Where it starts.
        start: u32,
    },
}

impl Row {
    /// The row that says the same of every protocol and port.
    pub fn uniform(act: Act) -> Self {
        Self([Step { start: PortKey::MIN, act }].into())
    }

    /// A row of these steps. Neighbours that say the same become one.
    ///
    /// # Errors
    ///
    /// [`RowError`] if the steps do not start at 0 or do not rise.
    pub fn new(steps: Vec<Step>) -> Result<Self, RowError> {
        let found = steps.first().map(|step| step.start);
        if found != Some(PortKey::MIN) {
            return Err(RowError::Start { found: found.map(PortKey::bits) });
        }
        if let Some(before) = steps.windows(2).position(|pair| pair[0].start >= pair[1].start) {
            let index = before + 1;
            return Err(RowError::Order { index, start: steps[index].start.bits() });
        }
        Ok(Self::merged(steps))
    }

    fn merged(mut steps: Vec<Step>) -> Self {
        steps.dedup_by(|later, earlier| later.act == earlier.act);
        Self(steps.into())
    }

    /// The row that says `act` of one protocol and port, and of all others what this one says.
    #[must_use]
    pub fn with(&self, key: PortKey, act: Act) -> Self {
        let mut steps: Vec<_> = self.0.iter().filter(|step| step.start < key).copied().collect();
        steps.push(Step { start: key, act });
        if let Some(next) = key.next() {
            steps.push(Step { start: next, act: self.act(next) });
            steps.extend(self.0.iter().filter(|step| step.start > next));
        }
        Self::merged(steps)
    }

    /// The steps, sorted by where they start.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// What the row says of a protocol and port.
    pub fn act(&self, key: PortKey) -> Act {
        // The first step starts at 0, so at least one step starts at or before any key.
        let after = self.0.partition_point(|step| step.start <= key);
        self.0[after - 1].act
    }
}

impl TryFrom<Vec<Step>> for Row {
    type Error = RowError;

    fn try_from(steps: Vec<Step>) -> Result<Self, RowError> {
        Self::new(steps)
    }
}

impl From<Row> for Vec<Step> {
    fn from(row: Row) -> Self {
        row.0.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn act(verdict: Verdict) -> Act {
        Act { verdict, attribution: AttributionId(Digest([7; 16])) }
    }

    fn step(protocol: u8, port: u16, verdict: Verdict) -> Step {
        Step { start: PortKey::new(protocol, port), act: act(verdict) }
    }

    #[test]
    fn a_row_answers_on_both_sides_of_each_step() {
        use Verdict::{Allow, Deny};
        let row = Row::new(vec![step(0, 0, Deny), step(6, 80, Allow), step(6, 81, Deny)]).expect("a row");
        let verdict = |port| row.act(PortKey::new(6, port)).verdict;
        assert_eq!([79, 80, 81].map(verdict), [Deny, Allow, Deny]);
        assert_eq!(row.act(PortKey::MIN).verdict, Deny);
        assert_eq!(row.act(PortKey::MAX).verdict, Deny);
    }

    #[test]
    fn neighbours_that_say_the_same_are_one_step() {
        let row = Row::new(vec![step(0, 0, Verdict::Deny), step(6, 80, Verdict::Deny)]);
        assert_eq!(row, Ok(Row::uniform(act(Verdict::Deny))));
    }

    #[test]
    fn one_port_can_be_said_otherwise() {
        use Verdict::{Allow, Deny};
        let row = Row::new(vec![step(0, 0, Deny), step(6, 80, Allow), step(6, 82, Deny)]).expect("a row");
        for key in [PortKey::MIN, PortKey::new(6, 79), PortKey::new(6, 81), PortKey::new(6, 82), PortKey::MAX]
        {
            for verdict in [Allow, Deny] {
                let other = row.with(key, act(verdict));
                for at in
                    (0x6_004d..0x6_0055).filter_map(PortKey::from_bits).chain([PortKey::MIN, PortKey::MAX])
                {
                    let expected = if at == key { verdict } else { row.act(at).verdict };
                    assert_eq!(other.act(at).verdict, expected, "{at:?} of {other:?}");
                }
                assert_eq!(Row::new(other.steps().to_vec()), Ok(other));
            }
        }
    }

    #[test]
    fn what_is_no_row_is_refused() {
        assert_eq!(Row::new(vec![]), Err(RowError::Start { found: None }));
        assert_eq!(Row::new(vec![step(0, 1, Verdict::Deny)]), Err(RowError::Start { found: Some(1) }));
        let twice = vec![step(0, 0, Verdict::Deny), step(6, 1, Verdict::Allow), step(6, 1, Verdict::Deny)];
        assert_eq!(Row::new(twice), Err(RowError::Order { index: 2, start: 0x6_0001 }));
    }
}
