//! Whether an allowed connection is logged, and with which policies. Pure.
//!
//! Of denials the kernel knows whether: an endpoint's flag says so.

use durward_proto::{Leaves, LogMode, Policy};

/// The policies that the line of an allowed connection lists; none if it is not logged.
///
/// What is allowed because nothing isolates the pod has no attribution, and is never logged.
pub fn allow(mode: LogMode, by: &Leaves) -> Option<Vec<Policy>> {
    let is_listed = |policy: &&Policy| match mode {
        LogMode::Off => false,
        LogMode::All => true,
        LogMode::Delegated => policy.logged,
    };
    let mut listed: Vec<_> = by.iter().filter(is_listed).cloned().collect();
    listed.sort_unstable();
    (!listed.is_empty()).then_some(listed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use durward_proto::Attribution;

    fn policy(name: &str, logged: bool) -> Policy {
        Policy { namespace: "shop".into(), name: name.into(), logged }
    }

    #[test]
    fn delegation_lists_the_policies_that_ask_for_it() {
        let [both, silent] =
            [vec![policy("asks", true), policy("silent", false)], vec![policy("silent", false)]]
                .map(Attribution::new);
        let listed = |mode, list: &Attribution| allow(mode, &list.clone().into());
        assert_eq!(listed(LogMode::Off, &both), None);
        assert_eq!(listed(LogMode::All, &both), Some(both.0.to_vec()));
        assert_eq!(listed(LogMode::All, &silent), Some(silent.0.to_vec()));
        assert_eq!(listed(LogMode::Delegated, &both), Some(vec![policy("asks", true)]));
        assert_eq!(listed(LogMode::Delegated, &silent), None);
    }
}
