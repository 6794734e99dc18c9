//! durward-plan.
