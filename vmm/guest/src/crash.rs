//! The report of a guest that did what it must not do.

use std::fmt;

use guest_abi::arch::FaultFrame;
use guest_mem::remedy::{self, Asked};
use guest_mem::waits::Overdue;
use rustix::io::Errno;

use crate::arch::{self, Registers};
use program::exit::Class;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum CrashKind {
    #[error("{}", arch::Exception(.0))]
    Exception(FaultFrame),
    #[error("panic: {0}")]
    Panic(String),
    #[error("triple fault")]
    TripleFault,
    /// `promised`: the address is RAM, so the fault is the VMM's.
    #[error(
        "{} guest physical address {gpa:#x}, {}",
        if *write { "wrote to" } else { "read from" },
        if *promised { "where its memslot was missing" } else { "where it has no memory" }
    )]
    NoMemory { gpa: u64, write: bool, promised: bool },
    #[error("needs the page at guest physical address {gpa:#x}, which cannot be brought back: {why}")]
    LostPage { gpa: u64, why: String },
    #[error("KVM found the host memory behind it gone (EFAULT)")]
    HostFault,
    /// The host has promised the page, and this is the limit that it met.
    #[error("got no page of the host's: {0}")]
    HostLimit(String),
    /// The memory had been taken away for a moment, and could not be given back.
    #[error("was left without its memory: {0}")]
    Memslots(String),
    #[error("{} I/O port {port:#x}, which no device serves", if *write { "wrote to" } else { "read" })]
    Port { port: u16, write: bool },
    #[error("rang the doorbell with {0}, which means nothing there")]
    Doorbell(u8),
    /// Usually an instruction that KVM's emulator does not know (`suberror` 1); its bytes, where KVM tells them.
    #[error("KVM internal error {suberror}{}", at_instruction(instruction))]
    InternalError { suberror: u32, instruction: Vec<u8> },
    #[error("the processor refused the entry, reason {reason:#x}")]
    FailEntry { reason: u64 },
    #[error("halted with nothing to wake it")]
    Halted,
    #[error("gave no sign of life")]
    Silent,
    #[error("KVM_RUN failed{}: {errno}", remedy::after(Asked::Kvm, *.0), errno = .0)]
    NoEntry(Errno),
    /// Another exit, as KVM names it.
    #[error("{0}")]
    Other(String),
    /// A thread of this program, or a wake from one, did not come: nothing that the guest did.
    #[error("{0}")]
    Overdue(Overdue),
    #[error("software worker: {0}")]
    Worker(String),
    #[error("the guest's agent failed: {0}")]
    Agent(String),
}

impl CrashKind {
    /// What the host did not give, in words, if it was that.
    pub fn host_limit(&self) -> Option<String> {
        match self {
            Self::HostLimit(_) | Self::Memslots(_) => Some(format!("the guest {self}")),
            Self::NoEntry(errno) if Class::of_refusal(*errno) == Class::Host => {
                Some(format!("the guest was not entered: {self}"))
            }
            _ => None,
        }
    }

    /// What it was, in words, if another guest with memory of its own need not meet it.
    pub fn costs_one_row(&self) -> Option<String> {
        match self {
            Self::LostPage { .. } => Some(format!("the guest {self}")),
            _ => self.host_limit(),
        }
    }
}

fn at_instruction(bytes: &[u8]) -> String {
    let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if hex.is_empty() { String::new() } else { format!(" at the instruction {}", hex.join(" ")) }
}

/// What is known of a worker's end.
#[derive(Clone, Debug)]
pub struct CrashReport {
    /// Which vCPU or worker.
    pub vcpu: u32,
    /// What happened.
    pub kind: CrashKind,
    /// Its registers, if it has any.
    pub registers: Option<Registers>,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.vcpu, self.kind)?;
        if let Some(registers) = &self.registers {
            write!(f, "\n{registers}")?;
            if matches!(self.kind, CrashKind::TripleFault) && registers.are_reset() {
                write!(
                    f,
                    "\n  (the registers of a reset: this KVM resets a vCPU that shuts down, its own are lost)"
                )?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for CrashReport {}
