//! durward-crds.
