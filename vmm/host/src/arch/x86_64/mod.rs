//! x86-64.

mod cpu_flags;

pub use cpu_flags::CpuFlags;
