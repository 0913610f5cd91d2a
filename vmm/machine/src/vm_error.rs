//! Why a VM could not be made, or changed.

use guest_mem::remedy::{self, Asked};
use guest_mem::{Gpa, RegionError, SlotError};
use rustix::io::Errno;

use super::boot_error::BootError;
use super::no_kvm::NoKvm;
use guest::CrashKind;
use program::exit::{Class, Classified};

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM makes no VM.
    #[error(transparent)]
    NoKvm(#[from] NoKvm),
    /// A call failed.
    #[error("{call} failed{}", kvm_remedy(*source))]
    Call {
        /// The ioctl's name.
        call: &'static str,
        /// What the system answered.
        source: kvm_ioctls::Error,
    },
    /// A memslot was refused.
    #[error("KVM refuses to {attempt} memslot {slot} ({len} bytes at gpa {gpa}){}", kvm_remedy(*source))]
    Slot {
        /// What was tried.
        attempt: &'static str,
        /// Its number.
        slot: u32,
        /// Where in the guest.
        gpa: Gpa,
        /// Bytes.
        len: u64,
        /// What the system answered.
        source: kvm_ioctls::Error,
    },
    /// This KVM cannot limit a slot zap to the slot.
    #[error(
        "this KVM drops every translation of the VM when one memslot goes (no KVM_X86_QUIRK_SLOT_ZAP_ALL in \
         KVM_CAP_DISABLE_QUIRKS2, Linux 6.12): set `slot_zap_all_quirk = true`, or `zap = [\"protect\"]`"
    )]
    QuirkStays,
    /// The memory could not be mapped.
    #[error(transparent)]
    Memory(#[from] RegionError),
    /// The memslots make no sense.
    #[error(transparent)]
    Slots(#[from] SlotError),
    /// An earlier change of the memslots was refused half-way.
    #[error("nobody is let into this guest any more: it {0}")]
    Broken(Box<CrashKind>),
    /// The guest could not be started.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A vCPU thread could not be started.
    #[error("vCPU {vcpu}'s thread cannot be started{}", remedy::after_io(Asked::Thread, source))]
    Thread {
        /// The vCPU's number.
        vcpu: u32,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A vCPU thread panicked or did not end, and has said so.
    #[error("a vCPU's thread is gone")]
    ThreadLost,
}

fn kvm_remedy(error: kvm_ioctls::Error) -> &'static str {
    remedy::after(Asked::Kvm, Errno::from_raw_os_error(error.errno()))
}

impl Classified for VmError {
    fn class(&self) -> Class {
        match self {
            Self::Call { source, .. } | Self::Slot { source, .. } => Class::of_refused_ioctl(*source),
            Self::NoKvm(error) => error.class(),
            Self::QuirkStays | Self::Broken(_) => Class::Host,
            Self::Memory(error) => error.class(),
            Self::Slots(error) => error.class(),
            Self::Boot(error) => error.class(),
            Self::Thread { source, .. } => Class::of_refused_io(source),
            Self::ThreadLost => Class::Fault,
        }
    }
}

/// Names the call in an error.
pub(super) fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Call { call, source }
}
