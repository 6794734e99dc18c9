//! Starts things.

fn main() {}
