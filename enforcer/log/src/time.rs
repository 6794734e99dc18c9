//! Times as the log writes them. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// A time in nanoseconds since 1970, as RFC 3339 with nanoseconds, in UTC.
pub(crate) fn rfc3339(at_ns: i64) -> String {
    // An i64 of nanoseconds ends in 2262; all of them are within what a timestamp can be.
    let at = Timestamp::from_nanosecond(at_ns.into()).unwrap_or_default();
    at.strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string()
}

/// The time of that text, in nanoseconds since 1970.
pub(crate) fn parse(text: &str) -> Option<i64> {
    i64::try_from(text.parse::<Timestamp>().ok()?.as_nanosecond()).ok()
}

/// Now, in nanoseconds since 1970.
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
