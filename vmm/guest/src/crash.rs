//! The report of a guest that did what it must not do.

use std::fmt;

use guest_abi::arch::FaultFrame;
use guest_mem::remedy::{self, Asked};
use guest_mem::waits::Overdue;
use rustix::io::Errno;

use crate::arch::{self, Registers};
use program::exit::Class;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// An exception reached the guest's ring 0.
    Exception(FaultFrame),
    /// The guest's Rust code panicked, with this message.
    Panic(String),
    /// A triple fault: an exception that could not be delivered.
    TripleFault,
    /// The guest reached for memory that is none: beyond its RAM, or a hole where a memslot should have been.
    NoMemory {
        /// Guest physical address.
        gpa: u64,
        /// Whether it wrote.
        write: bool,
        /// Whether RAM is promised at that address, so that the fault is the VMM's.
        promised: bool,
    },
    /// A page that was swapped out cannot be brought back.
    LostPage {
        /// The page's guest physical address.
        gpa: u64,
        /// What keeps it from coming back.
        why: String,
    },
    /// KVM could not reach the host memory behind a guest address: `KVM_RUN` failed with `EFAULT`.
    HostFault,
    /// The host has no page for the guest where it has promised one, and this is the limit that it met.
    HostLimit(String),
    /// The guest's memory could not be given back to it after it had been taken away for a moment.
    Memslots(String),
    /// The guest used an I/O port without a device.
    Port {
        /// The port's number.
        port: u16,
        /// Whether it wrote.
        write: bool,
    },
    /// The guest rang the doorbell with a value that means nothing at that point.
    Doorbell(u8),
    /// `KVM_EXIT_INTERNAL_ERROR`, usually an instruction that KVM's emulator does not know.
    InternalError {
        /// KVM's sub-error: 1 is emulation.
        suberror: u32,
        /// The instruction's bytes, where KVM tells them.
        instruction: Vec<u8>,
    },
    /// The processor refused the guest's state.
    FailEntry {
        /// The hardware's reason.
        reason: u64,
    },
    /// The guest halted, and nothing would ever wake it.
    Halted,
    /// Nothing came from it for too long, and it was asked where it is.
    Silent,
    /// `KVM_RUN` failed, with this answer.
    NoEntry(Errno),
    /// Another exit, as KVM names it.
    Other(String),
    /// A thread of this program, or a wake from one, did not come: nothing that the guest did.
    Overdue(Overdue),
    /// A worker on the software MMU failed.
    Worker(String),
    /// The agent in a Linux guest failed, or the link to it did.
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

impl fmt::Display for CrashKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception(frame) => write!(f, "{}", arch::Exception(frame)),
            Self::Panic(message) => write!(f, "panic: {message}"),
            Self::TripleFault => write!(f, "triple fault"),
            Self::NoMemory { gpa, write, promised } => write!(
                f,
                "{} guest physical address {gpa:#x}, {}",
                if *write { "wrote to" } else { "read from" },
                if *promised { "where its memslot was missing" } else { "where it has no memory" }
            ),
            Self::LostPage { gpa, why } => {
                write!(
                    f,
                    "needs the page at guest physical address {gpa:#x}, which cannot be brought back: {why}"
                )
            }
            Self::HostFault => write!(f, "KVM found the host memory behind it gone (EFAULT)"),
            Self::HostLimit(limit) => write!(f, "got no page of the host's: {limit}"),
            Self::Memslots(why) => write!(f, "was left without its memory: {why}"),
            Self::Port { port, write } => {
                write!(
                    f,
                    "{} I/O port {port:#x}, which nobody serves",
                    if *write { "wrote to" } else { "read" }
                )
            }
            Self::Doorbell(value) => write!(f, "rang the doorbell with {value}, which means nothing there"),
            Self::InternalError { suberror, instruction } => {
                write!(f, "KVM internal error {suberror}")?;
                if !instruction.is_empty() {
                    write!(f, " at the instruction {}", hex(instruction))?;
                }
                Ok(())
            }
            Self::FailEntry { reason } => write!(f, "the processor refused the entry, reason {reason:#x}"),
            Self::Halted => write!(f, "halted with nothing to wake it"),
            Self::Silent => write!(f, "gave no sign of life"),
            Self::NoEntry(errno) => {
                write!(f, "KVM_RUN failed{}: {errno}", remedy::after(Asked::Kvm, *errno))
            }
            Self::Other(what) => write!(f, "{what}"),
            Self::Overdue(overdue) => write!(f, "{overdue}"),
            Self::Worker(what) => write!(f, "software worker: {what}"),
            Self::Agent(what) => write!(f, "the guest's agent failed: {what}"),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
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
