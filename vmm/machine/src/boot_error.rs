//! The error of starting the bare guest.

use guest::elf::NotAGuest;
use program::exit::{Class, Classified};

/// A guest could not be started.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BootError {
    #[error(transparent)]
    NotAGuest(#[from] NotAGuest),
    #[error("the guest kernel cannot be loaded into {low_memory} bytes of low memory")]
    Load { low_memory: u64, source: linux_loader::loader::Error },
    #[error("the guest kernel has {0}: build it with one")]
    NoEntry(&'static str),
    #[error("the guest kernel's entry {entry:#x} lies outside of its {low_memory} bytes of low memory")]
    WildEntry { entry: u64, low_memory: u64 },
    #[error("the PVH start info cannot be written")]
    StartInfo(#[source] linux_loader::configurator::Error),
    #[error("KVM refuses vCPU {vcpu}'s first registers ({call})")]
    Registers { vcpu: u32, call: &'static str, source: kvm_ioctls::Error },
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
