//! Whether an allowed connection is logged, and with which policies. Pure.
//!
//! Of denials the kernel knows whether: an endpoint's flag says so.

use durward_proto::{Attribution, LogMode, Policy};

/// The policies that the line of an allowed connection lists; none if it is not logged.
///
/// What is allowed because nothing isolates the pod has no attribution, and is never logged.
pub fn allow(mode: LogMode, attribution: &Attribution) -> Option<Vec<Policy>> {
    let listed: Vec<_> = match mode {
        LogMode::Off => return None,
        LogMode::All => attribution.0.to_vec(),
        LogMode::Delegated => attribution.0.iter().filter(|policy| policy.logged).cloned().collect(),
    };
    (!listed.is_empty()).then_some(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, logged: bool) -> Policy {
        Policy { namespace: "shop".into(), name: name.into(), logged }
    }

    #[test]
    fn delegation_lists_the_policies_that_ask_for_it() {
        let both = Attribution::new([policy("asks", true), policy("silent", false)]);
        let silent = Attribution::new([policy("silent", false)]);
        assert_eq!(allow(LogMode::Off, &both), None);
        assert_eq!(allow(LogMode::All, &both), Some(both.0.to_vec()));
        assert_eq!(allow(LogMode::All, &silent), Some(silent.0.to_vec()));
        assert_eq!(allow(LogMode::Delegated, &both), Some(vec![policy("asks", true)]));
        assert_eq!(allow(LogMode::Delegated, &silent), None);
    }
}
