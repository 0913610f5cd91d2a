//! A BPF program as the source of ranges, with perf events for the other tracepoints. It costs least for each range: it
//! stores four words, where perf reserves, fills and commits a record.
//!
//! ```text
//!   kvm_unmap_hva_range ── program ── the CPU's buffer: head, tail, slots ─┐
//!                             └─ every half a buffer: wakeup               ├─> Source
//!   other tracepoints ── perf events ── rings ─────────────────────────────┘
//! ```
//!
//! The program is attached beside other listeners of the tracepoint and does not disturb them. The kernel detaches it when
//! its descriptor is closed, which the end of the process does as well.

mod buffers;
mod program;
mod sys;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;

use self::buffers::{Buffers, SLOT, buffer_size};
use super::mapping::Mapping;
use super::perf::{Perf, PerfError, parse_cpus, ring_size};
use super::ring::Damaged;
use super::source::{Record, Source};
use super::tracepoints::Layout;
use host::in_initial_pid_namespace;

/// The kernel's page, and the smallest size of a BPF ring.
const PAGE: usize = 4096;

/// The BPF program cannot be loaded or attached.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BpfError {
    #[error(
        "BPF programs are refused: setcap cap_bpf,cap_perfmon+ep zapscope, or be root; before Linux 5.11 with \
         `ulimit -l unlimited`; a kernel locked down for confidentiality may have none for anybody"
    )]
    Refused(#[source] Errno),
    #[error("{call}{}", hint(source))]
    Call { call: &'static str, source: Errno },
    #[error(
        "kvm:kvm_unmap_hva_range has other fields than start and end, so a BPF program cannot tell its arguments"
    )]
    Arguments,
    #[error(
        "a BPF program numbers threads as the initial PID namespace does, and this is another: use perf (`--tap perf`), \
         or run outside the container"
    )]
    Namespace,
    #[error("/sys/devices/system/cpu/possible cannot be read, so the CPUs are not known")]
    Cpus(#[source] io::Error),
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

/// Ranges by a program, other tracepoints by perf.
#[derive(Debug)]
pub struct Bpf {
    buffers: Buffers,
    wakeup: Wakeup,
    program: OwnedFd,
    rest: Perf,
    /// The program is attached as long as this is open.
    _attached: OwnedFd,
}

impl Bpf {
    /// Whether this process may load a program for a raw tracepoint. The program is not attached.
    pub fn permitted() -> Result<(), Errno> {
        sys::load(&program::that_does_nothing()).map(drop)
    }

    /// Opens the tracepoints of `layout`; ranges are recorded where they meet the hull of `watched`.
    pub fn open(layout: &Layout, watched: &[HvaRange]) -> Result<Self, BpfError> {
        let (ranges, rest) = layout.listened().split_first().expect("a layout begins with the ranges");
        if !layout.names_its_arguments() {
            return Err(BpfError::Arguments);
        }
        if !in_initial_pid_namespace() {
            return Err(BpfError::Namespace);
        }
        let possible = fs::read_to_string("/sys/devices/system/cpu/possible").map_err(BpfError::Cpus)?;
        let cpus =
            parse_cpus(possible.trim()).ok_or_else(|| BpfError::Cpus(io::ErrorKind::InvalidData.into()))?;
        // A buffer is found by its CPU's number.
        let cpus = cpus.last().map_or(1, |last| *last as usize + 1);
        let slots = (ring_size(cpus) / SLOT) as u32;
        let map =
            sys::mappable_array(cpus as u32, buffer_size(slots) as u32).map_err(refused("BPF_MAP_CREATE"))?;
        let buffers = Buffers::of(map.as_fd(), cpus, slots).map_err(refused("mmap of a BPF map"))?;
        let wakeup = Wakeup::new().map_err(refused("BPF_MAP_CREATE of a ring"))?;
        let near = watched.iter().copied().fold(HvaRange::empty(Hva::new(0)), HvaRange::hull);
        let program = program::assemble(map.as_fd(), wakeup.ring.as_fd(), slots, near);
        let program = sys::load(&program).map_err(refused("BPF_PROG_LOAD"))?;
        let rest = Perf::open(rest, watched)?;
        let name = ranges.path.rsplit('/').next().unwrap_or(ranges.path);
        let name = CString::new(name).expect("names of tracepoints have no NUL");
        let attached = sys::attach(program.as_fd(), &name).map_err(refused("BPF_RAW_TRACEPOINT_OPEN"))?;
        Ok(Self { buffers, wakeup, program, rest, _attached: attached })
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
        wakes.push(self.wakeup.ring.as_fd());
        wakes
    }

    /// Ranges first: so the begin of the work that caused a range is read after it, and is never missing.
    fn drain(&mut self, sink: &mut dyn FnMut(Record<'_>)) -> Result<(), Damaged> {
        self.wakeup.reset();
        self.buffers.drain(|event| sink(event.map_or(Record::Malformed, Record::Event)))?;
        self.rest.drain(sink)
    }

    fn lost(&mut self) -> u64 {
        self.buffers.lost() + sys::misses(&self.program) + self.rest.lost()
    }
}

/// A BPF ring that is used for nothing but polling.
#[derive(Debug)]
struct Wakeup {
    ring: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
}

impl Wakeup {
    fn new() -> Result<Self, Errno> {
        let ring = sys::ring(PAGE as u32)?;
        let consumer = Mapping::of(ring.as_fd(), PAGE)?;
        let producer = Mapping::to_read(ring.as_fd(), PAGE, PAGE)?;
        Ok(Self { ring, consumer, producer })
    }

    /// Consumes what the program has written, so that the ring is not readable until it writes again.
    fn reset(&self) {
        // A read-only mapping allows relaxed loads alone.
        let written = self.producer.word(0).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        self.consumer.word(0).store(written, Ordering::Release);
    }
}
