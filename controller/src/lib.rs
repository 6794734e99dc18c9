//! durward-controller.
