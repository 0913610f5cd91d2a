//! x86-64.

mod power;

pub use power::{AcpiPower, I8042};
