//! A BPF program as a source of ranges, with perf events for whatever else is listened to. It costs a range least: no
//! record is reserved, filled by a general rule, and committed, but four words are stored.
//!
//! ```text
//!   kvm_unmap_hva_range ── program ── the CPU's part: head, tail, slots ──┐
//!                             └─ every half a part: bell ── wakes         ├─> Source
//!   all else ── perf events ── rings ─────────────────────────────────────┘
//! ```
//!
//! The program belongs to the tracepoint as a listener of its own: it takes nothing from others who listen there. It is
//! gone when its descriptor is closed, by whatever end the process comes to.

mod parts;
mod program;
mod sys;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;

use self::parts::{Parts, SLOT, part_size};
use super::mapping::Mapping;
use super::perf::{Perf, PerfError, parse_cpus, ring_size};
use super::source::{Heard, Source, SourceError};
use super::tracepoints::Layout;
use host::in_initial_pid_namespace;

/// The kernel's page, and the least that a BPF ring can have.
const PAGE: usize = 4096;

/// Why there is no BPF program.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// Programs are not for us.
    #[error(
        "BPF programs are refused: setcap cap_bpf,cap_perfmon+ep zapscope, or be root; before Linux 5.11 with \
         `ulimit -l unlimited`; a kernel locked down for confidentiality may have none for anybody"
    )]
    Refused(#[source] Errno),
    /// A call failed.
    #[error("{call}{}", hint(source))]
    Call {
        /// The system call's name.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The tracepoint's arguments are not the two addresses.
    #[error(
        "kvm:kvm_unmap_hva_range has other fields than start and end, so a BPF program cannot tell its arguments"
    )]
    Arguments,
    /// Threads have other numbers here than in the program.
    #[error(
        "a BPF program numbers threads as the initial PID namespace does, and this is another: use perf (`--tap perf`), \
         or run outside the container"
    )]
    Namespace,
    /// The host does not say which CPUs it can have.
    #[error("/sys/devices/system/cpu/possible cannot be read, so the CPUs are not known")]
    Cpus(#[source] io::Error),
    /// No perf events for the rest.
    #[error(transparent)]
    Perf(#[from] PerfError),
}

fn hint(errno: &Errno) -> &'static str {
    match *errno {
        Errno::NOSYS => ": this kernel has no BPF (CONFIG_BPF_SYSCALL)",
        Errno::INVAL => ": this kernel's BPF is older than Linux 5.8, or has no tracing (CONFIG_BPF_EVENTS)",
        _ => "",
    }
}

/// Ranges by a program, all else by perf.
#[derive(Debug)]
pub struct Bpf {
    parts: Parts,
    bell: Bell,
    program: OwnedFd,
    rest: Perf,
    /// As long as this is open the program runs.
    _attached: OwnedFd,
}

impl Bpf {
    /// Whether the kernel takes a program of ours for a raw tracepoint; it is not attached.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn permitted() -> Result<(), Errno> {
        sys::load(&program::that_does_nothing()).map(drop)
    }

    /// Listens to all that `layout` lists, ranges only where they meet the hull of `watched`.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn open(layout: &Layout, watched: &[HvaRange]) -> Result<Self, BpfError> {
        let (ranges, rest) = layout.listened().split_first().expect("a layout has the ranges");
        if !layout.names_its_arguments() {
            return Err(BpfError::Arguments);
        }
        if !in_initial_pid_namespace() {
            return Err(BpfError::Namespace);
        }
        let possible = fs::read_to_string("/sys/devices/system/cpu/possible").map_err(BpfError::Cpus)?;
        let cpus =
            parse_cpus(possible.trim()).ok_or_else(|| BpfError::Cpus(io::ErrorKind::InvalidData.into()))?;
        // A part is found by its CPU's number.
        let cpus = cpus.last().map_or(1, |last| *last as usize + 1);
        let slots = (ring_size(cpus) / SLOT) as u32;
        let map =
            sys::mappable_array(cpus as u32, part_size(slots) as u32).map_err(refused("BPF_MAP_CREATE"))?;
        let parts = Parts::of(map.as_fd(), cpus, slots).map_err(refused("mmap of a BPF map"))?;
        let bell = Bell::new().map_err(refused("BPF_MAP_CREATE of a ring"))?;
        let near = watched.iter().copied().fold(HvaRange::empty(Hva::new(0)), HvaRange::hull);
        let program = program::assemble(map.as_fd(), bell.ring.as_fd(), slots, near);
        let program = sys::load(&program).map_err(refused("BPF_PROG_LOAD"))?;
        let rest = Perf::open(rest, watched)?;
        let name = ranges.path.rsplit('/').next().unwrap_or(ranges.path);
        let name = CString::new(name).expect("names of tracepoints have no NUL");
        let attached = sys::attach(program.as_fd(), &name).map_err(refused("BPF_RAW_TRACEPOINT_OPEN"))?;
        Ok(Self { parts, bell, program, rest, _attached: attached })
    }
}

fn refused(call: &'static str) -> impl FnOnce(Errno) -> BpfError {
    move |errno| match errno {
        Errno::PERM => BpfError::Refused(errno),
        source => BpfError::Call { call, source },
    }
}

impl Source for Bpf {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        let mut wakes = self.rest.wakes();
        wakes.push(self.bell.ring.as_fd());
        wakes
    }

    /// Ranges first: then the beginning of whatever caused one is among the rest.
    fn drain(&mut self, sink: &mut dyn FnMut(Heard<'_>)) -> Result<(), SourceError> {
        self.bell.answer();
        self.parts.drain(|event| sink(event.map_or(Heard::Nonsense, Heard::Event)))?;
        self.rest.drain(sink)
    }

    fn lost(&mut self) -> u64 {
        self.parts.lost() + sys::misses(&self.program) + self.rest.lost()
    }
}

/// A BPF ring that is only there to be polled.
#[derive(Debug)]
struct Bell {
    ring: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
}

impl Bell {
    fn new() -> Result<Self, Errno> {
        let ring = sys::ring(PAGE as u32)?;
        let consumer = Mapping::of(ring.as_fd(), PAGE)?;
        let producer = Mapping::to_read(ring.as_fd(), PAGE, PAGE)?;
        Ok(Self { ring, consumer, producer })
    }

    /// Rings no more, until it is rung again.
    fn answer(&self) {
        // What may only be read may only be loaded so.
        let rung = self.producer.word(0).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        self.consumer.word(0).store(rung, Ordering::Release);
    }
}
