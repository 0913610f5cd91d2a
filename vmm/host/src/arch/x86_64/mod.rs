//! x86-64.

mod cpu_flags;
pub mod kvm_module;

pub use cpu_flags::CpuFlags;
