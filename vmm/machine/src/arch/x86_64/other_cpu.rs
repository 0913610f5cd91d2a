//! Whether this host's processor can take over a guest that another one began.

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;

use super::state::{StateError, VcpuState, offered_cpuid};
use crate::Kvm;

/// A guest that began on another processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum OtherCpu {
    #[error(
        "its guest began on a processor by {there}, and this one is by {here}: make the snapshot on this host"
    )]
    Vendor { there: String, here: String },
    #[error(
        "its guest may use what this processor or its KVM lacks (CPUID leaf {leaf:#x}, {register}, bits {bits:#x}): \
             make the snapshot on this host"
    )]
    Lacks { leaf: u32, register: &'static str, bits: u32 },
}

/// A register of a leaf.
type Get = fn(&kvm_cpuid_entry2) -> u32;

const EBX: (&str, Get) = ("EBX", |leaf| leaf.ebx);
const ECX: (&str, Get) = ("ECX", |leaf| leaf.ecx);
const EDX: (&str, Get) = ("EDX", |leaf| leaf.edx);
const EAX: (&str, Get) = ("EAX", |leaf| leaf.eax);

/// Leaves, subleaves and registers that are nothing but features, without the bits that only mirror CR4.
const FEATURES: [(u32, u32, (&str, Get), u32); 9] = [
    (1, 0, ECX, !(1 << 27)),
    (1, 0, EDX, !0),
    (7, 0, EBX, !0),
    (7, 0, ECX, !(1 << 4)),
    (7, 0, EDX, !0),
    (7, 1, EAX, !0),
    (0xd, 1, EAX, !0),
    (0x8000_0001, 0, ECX, !0),
    (0x8000_0001, 0, EDX, !0),
];

/// Whether the guest of `state` can go on as vCPU `vcpu`, which is new and gets its CPUID set.
///
/// # Errors
/// KVM refuses its own leaves.
pub(crate) fn check_cpu(
    state: &VcpuState,
    kvm: &Kvm,
    fd: &VcpuFd,
    vcpu: u32,
) -> Result<Result<(), OtherCpu>, StateError> {
    Ok(check(&state.cpuid, &offered_cpuid(kvm, fd, vcpu)?))
}

/// Whether a guest with the CPUID `there` can go on where KVM offers `here`.
fn check(there: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), OtherCpu> {
    let vendors = [vendor(there), vendor(here)];
    let [there_by, here_by] = vendors;
    if there_by != here_by {
        return Err(OtherCpu::Vendor { there: there_by, here: here_by });
    }
    for (leaf, subleaf, (register, get), mask) in FEATURES {
        let of = |entries| find(entries, leaf, subleaf).map_or(0, get);
        let bits = of(there) & mask & !of(here);
        if bits != 0 {
            return Err(OtherCpu::Lacks { leaf, register, bits });
        }
    }
    Ok(())
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, subleaf: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| (entry.function, entry.index) == (leaf, subleaf))
}

fn vendor(entries: &[kvm_cpuid_entry2]) -> String {
    let bytes: Vec<u8> = find(entries, 0, 0)
        .map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat())
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes).escape_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(vendor: &[u8; 12], features: u32) -> Vec<kvm_cpuid_entry2> {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let zero = kvm_cpuid_entry2 { ebx: word(0), edx: word(4), ecx: word(8), ..Default::default() };
        vec![zero, kvm_cpuid_entry2 { function: 7, ebx: features, ..Default::default() }]
    }

    #[test]
    fn more_is_fine_and_less_is_not() {
        let [small, large] = [0b0001, 0b1011].map(|features| host(b"AuthenticAMD", features));
        assert_eq!(check(&small, &large), Ok(()));
        assert_eq!(check(&small, &small), Ok(()));
        let error = check(&large, &small).unwrap_err();
        assert_eq!(error, OtherCpu::Lacks { leaf: 7, register: "EBX", bits: 0b1010 });
    }

    #[test]
    fn another_make_is_named() {
        let error = check(&host(b"GenuineIntel", 0), &host(b"AuthenticAMD", 0)).unwrap_err().to_string();
        assert!(error.contains("GenuineIntel") && error.contains("AuthenticAMD"), "{error}");
        assert!(check(&[], &host(b"AuthenticAMD", 0)).is_err());
    }
}
