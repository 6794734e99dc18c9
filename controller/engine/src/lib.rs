//! durward-engine.
