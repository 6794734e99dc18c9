//! durward-bpf.
