//! The zapscope command.
fn main() {}
