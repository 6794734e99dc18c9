//! durward-enforcer.
