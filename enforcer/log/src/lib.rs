//! durward-log.
