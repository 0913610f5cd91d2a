//! The error of making or changing a VM.

use guest_mem::remedy::{self, Asked};
use guest_mem::{Gpa, RegionError, SlotError};
use rustix::io::Errno;

use super::boot_error::BootError;
use super::no_kvm::NoKvm;
use guest::CrashKind;
use program::exit::{Class, Classified};

/// A VM could not be made, or changed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum VmError {
    #[error(transparent)]
    NoKvm(#[from] NoKvm),
    #[error("{call} failed{}", kvm_remedy(*source))]
    Call { call: &'static str, source: kvm_ioctls::Error },
    #[error("KVM refuses to {attempt} memslot {slot} ({len} bytes at gpa {gpa}){}", kvm_remedy(*source))]
    Slot { attempt: &'static str, slot: u32, gpa: Gpa, len: u64, source: kvm_ioctls::Error },
    #[error(
        "this KVM drops every translation of the VM when one memslot goes (no {0} in \
         KVM_CAP_DISABLE_QUIRKS2, Linux 6.12): set `slot_zap_all_quirk = true`, or `zap = [\"protect\"]`"
    )]
    QuirkStays(&'static str),
    #[error(transparent)]
    Memory(#[from] RegionError),
    #[error(transparent)]
    Slots(#[from] SlotError),
    #[error("no vCPU runs this guest any more: it {0}")]
    Broken(Box<CrashKind>),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("vCPU {vcpu}'s thread cannot be started{}", remedy::after_io(Asked::Thread, source))]
    Thread { vcpu: u32, source: std::io::Error },
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
            Self::QuirkStays(_) | Self::Broken(_) => Class::Host,
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
