//! durward-e2e.
