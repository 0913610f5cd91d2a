//! A vCPU's state: taken from one at rest, given to a new one.
//!
//! ```text
//!   at rest: KVM_RUN, to be left at once ── KVM completes the last exit, and RIP is behind the instruction
//!   take   : CPUID, MSRs, registers, FPU, XCR0, debug registers, pending events, run state
//!   give   : CPUID, run state, registers, FPU, XCR0, debug registers, MSRs, events     each may depend on those before
//! ```
//!
//! The bare guest's VM has no interrupt controller in the kernel, so there is no local APIC to keep.

use std::arch::x86_64::CpuidResult;

use crate::Kvm;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd};
use program::exit::{Class, Classified};

/// All of a vCPU that is not memory. A part that this KVM does not offer is `None`.
#[derive(Debug)]
#[expect(missing_docs, reason = "KVM's own names")]
pub struct VcpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub msrs: Vec<kvm_msr_entry>,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xsave: Box<kvm_xsave>,
    pub xcrs: Option<kvm_xcrs>,
    pub debugregs: Option<kvm_debugregs>,
    pub events: Option<kvm_vcpu_events>,
    pub mp_state: Option<kvm_mp_state>,
}

/// Why a vCPU's state could not be taken or given.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum StateError {
    #[error("{call} failed for vCPU {vcpu}")]
    Call {
        call: &'static str,
        vcpu: u32,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("vCPU {vcpu} is not at rest: it left KVM_RUN with {exit}")]
    NotAtRest { vcpu: u32, exit: String },
    #[error(
        "this KVM keeps {bytes} bytes of FPU state, of which 4096 fit: switch off what the guest does not use (AMX)"
    )]
    LargeXsave { bytes: i32 },
    #[error("{entries} CPUID leaves for vCPU {vcpu}: KVM takes at most {KVM_MAX_CPUID_ENTRIES}")]
    ManyLeaves { vcpu: u32, entries: usize },
}

impl Classified for StateError {
    fn class(&self) -> Class {
        match self {
            Self::Call { source, .. } => Class::of_refused_ioctl(*source),
            Self::NotAtRest { .. } => Class::Fault,
            Self::LargeXsave { .. } | Self::ManyLeaves { .. } => Class::Host,
        }
    }
}

/// Bytes of `kvm_xsave`.
const XSAVE_BYTES: i32 = 4096;

/// Whether as many bytes as KVM_CAP_XSAVE2 says are kept; 0 where KVM does not know it, and has the old structure.
fn check_xsave(bytes: i32) -> Result<(), StateError> {
    if bytes > XSAVE_BYTES { Err(StateError::LargeXsave { bytes }) } else { Ok(()) }
}

/// Names the call in an error.
fn failed(call: &'static str, vcpu: u32) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Call { call, vcpu, source }
}

/// Has the vCPU complete its last exit: KVM completes an access to a port at the next entry.
///
/// # Errors
/// It ran on instead.
pub fn come_to_rest(fd: &mut VcpuFd, vcpu: u32) -> Result<(), StateError> {
    fd.set_kvm_immediate_exit(1);
    let exit = match fd.run() {
        Err(error) if error.errno() == libc::EINTR => None,
        Err(error) => Some(error.to_string()),
        Ok(exit) => Some(format!("{exit:?}")),
    };
    fd.set_kvm_immediate_exit(0);
    exit.map_or(Ok(()), |exit| Err(StateError::NotAtRest { vcpu, exit }))
}

/// The CPUID that the guest of a new vCPU sees: more than KVM says it supports where a guest is shown the processor's
/// own (kvm_pvm). Sets it.
///
/// # Errors
/// KVM refuses its own leaves.
pub fn offered_cpuid(kvm: &Kvm, fd: &VcpuFd, vcpu: u32) -> Result<Vec<kvm_cpuid_entry2>, StateError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let supported = supported.map_err(failed("KVM_GET_SUPPORTED_CPUID", vcpu))?;
    fd.set_cpuid2(&supported).map_err(failed("KVM_SET_CPUID2", vcpu))?;
    let seen = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_CPUID2", vcpu))?;
    Ok(seen.as_slice().to_vec())
}

impl VcpuState {
    /// Takes the state of vCPU `vcpu`, which is at rest. `missing` is told the parts that this KVM does not give.
    ///
    /// # Errors
    /// It does not give a part that every guest needs.
    pub fn take(
        kvm: &Kvm,
        fd: &VcpuFd,
        vcpu: u32,
        missing: &mut impl FnMut(String),
    ) -> Result<Self, StateError> {
        check_xsave(kvm.check_extension_int(Cap::Xsave2))?;
        let cpuid = fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_CPUID2", vcpu))?;
        let mut or_none =
            |call: &str, error: kvm_ioctls::Error| missing(format!("{call} of vCPU {vcpu}: {error}"));
        let state = Self {
            cpuid: cpuid.as_slice().to_vec(),
            msrs: Vec::new(),
            regs: fd.get_regs().map_err(failed("KVM_GET_REGS", vcpu))?,
            sregs: fd.get_sregs().map_err(failed("KVM_GET_SREGS", vcpu))?,
            xsave: Box::new(fd.get_xsave().map_err(failed("KVM_GET_XSAVE", vcpu))?),
            xcrs: fd.get_xcrs().map_err(|error| or_none("KVM_GET_XCRS", error)).ok(),
            debugregs: fd.get_debug_regs().map_err(|error| or_none("KVM_GET_DEBUGREGS", error)).ok(),
            events: fd.get_vcpu_events().map_err(|error| or_none("KVM_GET_VCPU_EVENTS", error)).ok(),
            mp_state: fd.get_mp_state().map_err(|error| or_none("KVM_GET_MP_STATE", error)).ok(),
        };
        Ok(Self { msrs: take_msrs(kvm, fd, vcpu, missing)?, ..state })
    }

    /// Gives the state to a new vCPU. `missing` is told which MSRs this KVM does not take.
    pub fn give(
        &self,
        kvm: &Kvm,
        fd: &VcpuFd,
        vcpu: u32,
        missing: &mut impl FnMut(String),
    ) -> Result<(), StateError> {
        check_xsave(kvm.check_extension_int(Cap::Xsave2))?;
        let cpuid = CpuId::from_entries(&self.cpuid)
            .map_err(|_| StateError::ManyLeaves { vcpu, entries: self.cpuid.len() })?;
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2", vcpu))?;
        if let Some(mp_state) = self.mp_state {
            fd.set_mp_state(mp_state).map_err(failed("KVM_SET_MP_STATE", vcpu))?;
        }
        let sregs = as_the_host_wants(self.sregs, &hypervisor_leaf());
        fd.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS", vcpu))?;
        fd.set_regs(&self.regs).map_err(failed("KVM_SET_REGS", vcpu))?;
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 says, and they were checked to be no more than there are.
        unsafe { fd.set_xsave(&self.xsave) }.map_err(failed("KVM_SET_XSAVE", vcpu))?;
        if let Some(xcrs) = &self.xcrs {
            fd.set_xcrs(xcrs).map_err(failed("KVM_SET_XCRS", vcpu))?;
        }
        if let Some(debugregs) = &self.debugregs {
            fd.set_debug_regs(debugregs).map_err(failed("KVM_SET_DEBUGREGS", vcpu))?;
        }
        give_msrs(fd, &self.msrs, vcpu, missing)?;
        if let Some(events) = &self.events {
            fd.set_vcpu_events(events).map_err(failed("KVM_SET_VCPU_EVENTS", vcpu))?;
        }
        Ok(())
    }
}

/// A TSS that is in use is busy, and KVM says so of every one. QEMU's emulation of a processor remembers it as it was
/// before it was loaded, available, and looks at the I/O permission bitmap of no other: there, the guest's ring 3 could
/// not ring its doorbell.
fn as_the_host_wants(mut sregs: kvm_sregs, hypervisor: &CpuidResult) -> kvm_sregs {
    const BUSY: u8 = 1 << 1;
    let CpuidResult { ebx, ecx, edx, .. } = *hypervisor;
    if [ebx, ecx, edx].map(u32::to_le_bytes).as_flattened() == b"TCGTCGTCGTCG" {
        sregs.tr.type_ &= !BUSY;
    }
    sregs
}

/// Where a hypervisor under this host has its name, if there is one.
fn hypervisor_leaf() -> CpuidResult {
    // SAFETY: every x86-64 processor has the instruction, and a leaf without meaning reads as something. (Safe to call in
    // later versions of the standard library.)
    #[allow(unused_unsafe)]
    let leaf = unsafe { std::arch::x86_64::__cpuid(0x4000_0000) };
    leaf
}

/// As many MSRs as one call takes.
const MSR_BATCH: usize = 64;

/// All MSRs that KVM lists and gives.
fn take_msrs(
    kvm: &Kvm,
    fd: &VcpuFd,
    vcpu: u32,
    missing: &mut impl FnMut(String),
) -> Result<Vec<kvm_msr_entry>, StateError> {
    let list = kvm.get_msr_index_list().map_err(failed("KVM_GET_MSR_INDEX_LIST", vcpu))?;
    let wanted: Vec<_> =
        list.as_slice().iter().map(|&index| kvm_msr_entry { index, ..kvm_msr_entry::default() }).collect();
    let mut taken = Vec::with_capacity(wanted.len());
    each_msr(
        &wanted,
        vcpu,
        |batch| {
            let done = fd.get_msrs(batch).map_err(failed("KVM_GET_MSRS", vcpu))?;
            taken.extend_from_slice(&batch.as_slice()[..done]);
            Ok(done)
        },
        |refused| missing(format!("MSR {:#x} of vCPU {vcpu}", refused.index)),
    )?;
    Ok(taken)
}

fn give_msrs(
    fd: &VcpuFd,
    msrs: &[kvm_msr_entry],
    vcpu: u32,
    missing: &mut impl FnMut(String),
) -> Result<(), StateError> {
    let give = |batch: &mut Msrs| fd.set_msrs(batch).map_err(failed("KVM_SET_MSRS", vcpu));
    each_msr(msrs, vcpu, give, |refused| {
        // Read-only ones are often what they were.
        let is_so = Msrs::from_entries(&[refused])
            .is_ok_and(|mut one| fd.get_msrs(&mut one) == Ok(1) && one.as_slice()[0].data == refused.data);
        if !is_so {
            missing(format!("MSR {:#x} of vCPU {vcpu} stays other than {:#x}", refused.index, refused.data));
        }
    })
}

/// Calls with batch after batch; where KVM stops at one, says so and goes on behind it.
fn each_msr(
    msrs: &[kvm_msr_entry],
    vcpu: u32,
    mut call: impl FnMut(&mut Msrs) -> Result<usize, StateError>,
    mut refused: impl FnMut(kvm_msr_entry),
) -> Result<(), StateError> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let len = rest.len().min(MSR_BATCH);
        let (entries, left) = rest.split_at(len);
        let mut batch =
            Msrs::from_entries(entries).map_err(|_| StateError::ManyLeaves { vcpu, entries: len })?;
        let done = call(&mut batch)?.min(len);
        match entries.get(done) {
            Some(&at) => {
                refused(at);
                rest = &rest[done + 1..];
            }
            None => rest = left,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
