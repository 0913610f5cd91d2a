//! Why the bare guest could not be started.

use guest::elf::NotAGuest;
use program::exit::{Class, Classified};

/// Why a guest could not be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is not what this machine runs.
    #[error(transparent)]
    NotAGuest(#[from] NotAGuest),
    /// linux-loader could not place it.
    #[error("the guest kernel cannot be loaded into {low_memory} bytes of low memory")]
    Load {
        /// How much memory there is below the arena.
        low_memory: u64,
        /// What went wrong there.
        source: linux_loader::loader::Error,
    },
    /// There is no entry.
    #[error("the guest kernel has {0}: build it with one")]
    NoEntry(&'static str),
    /// The entry lies outside what was loaded.
    #[error("the guest kernel's entry {entry:#x} lies outside of its {low_memory} bytes of low memory")]
    WildEntry {
        /// The entry.
        entry: u64,
        /// How much memory there is below the arena.
        low_memory: u64,
    },
    /// The start info could not be written.
    #[error("the PVH start info cannot be written")]
    StartInfo(#[source] linux_loader::configurator::Error),
    /// The vCPU refuses its registers.
    #[error("KVM refuses vCPU {vcpu}'s first registers ({call})")]
    Registers {
        /// Which vCPU.
        vcpu: u32,
        /// Which call.
        call: &'static str,
        /// What the system answered.
        source: kvm_ioctls::Error,
    },
}

impl Classified for BootError {
    fn class(&self) -> Class {
        match self {
            Self::NotAGuest(_) | Self::Load { .. } | Self::NoEntry(_) | Self::WildEntry { .. } => {
                Class::Mistake
            }
            Self::StartInfo(_) => Class::Fault,
            Self::Registers { source, .. } => Class::of_refused_ioctl(*source),
        }
    }
}
