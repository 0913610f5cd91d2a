//! Signals that would kill init, and the kernel with it: they are told instead.
//!
//! ```text
//!   a vCPU's thread ── SIGBUS ──> handler ── (vCPU, signal, address) ──> pipe ──> main thread: Failed, power off
//!   any other thread ───────────> handler ── a line on the console, power off
//! ```

use std::cell::Cell;
use std::io;
use std::mem;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::power;

const FATAL: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// The pipe's end for the handler; -1 before there is one.
static REPORTS: AtomicI32 = AtomicI32::new(-1);

thread_local! {
    /// The vCPU whose thread this is.
    static VCPU: Cell<Option<u16>> = const { Cell::new(None) };
}

/// A vCPU's thread that came to its end.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which vCPU's.
    pub vcpu: u16,
    /// The signal.
    pub signal: c_int,
    /// What it touched.
    pub address: usize,
}

/// A signal's name.
pub fn name(signal: c_int) -> &'static str {
    match signal {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        _ => "SIGABRT",
    }
}

const RECORD: usize = 2 + 4 + 8;

/// Where faults arrive.
pub struct Faults(OwnedFd);

impl Faults {
    /// Takes over the signals.
    pub fn install() -> io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        REPORTS.store(write.into_raw_fd(), Ordering::Relaxed);
        for signal in FATAL {
            // SAFETY: all zeros is a valid `sigaction`.
            let mut action: libc::sigaction = unsafe { mem::zeroed() };
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: the handler calls nothing but what signal handlers may call.
            if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(read))
    }

    /// What to poll.
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Reads the fault that has arrived.
    pub fn read(&self) -> io::Result<Fault> {
        let mut record = [0; RECORD];
        // Written at once, and shorter than a pipe's atomic write.
        if rustix::io::read(&self.0, &mut record)? != RECORD {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let [v0, v1, s0, s1, s2, s3, address @ ..] = record;
        Ok(Fault {
            vcpu: u16::from_ne_bytes([v0, v1]),
            signal: c_int::from_ne_bytes([s0, s1, s2, s3]),
            address: usize::from_ne_bytes(address),
        })
    }
}

/// Faults of this thread are those of `vcpu`.
pub fn report_as(vcpu: u16) {
    VCPU.set(Some(vcpu));
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid one.
    let info = unsafe { &*info };
    // SAFETY: for these signals the field is an address; of a signal that somebody sent it is nonsense, and only shown.
    let address = unsafe { info.si_addr() } as usize;
    let Some(vcpu) = VCPU.get() else {
        let parts = [b"zapscope-agent: died of ", name(signal).as_bytes(), b"\n"];
        for part in parts {
            // SAFETY: writes the bytes of a slice.
            unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
        }
        power::off();
    };
    let mut record = [0; RECORD];
    record[..2].copy_from_slice(&vcpu.to_ne_bytes());
    record[2..6].copy_from_slice(&signal.to_ne_bytes());
    record[6..].copy_from_slice(&address.to_ne_bytes());
    // SAFETY: writes the bytes of an array; the descriptor was opened for it and never closes.
    unsafe { libc::write(REPORTS.load(Ordering::Relaxed), record.as_ptr().cast(), RECORD) };
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}
