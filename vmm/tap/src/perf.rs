//! perf events as a source: one ring for each CPU, into which every tracepoint of that CPU writes.
//!
//! ```text
//!             CPU 0                         CPU 1 …
//!   ranges    ring ── filter by address     ring
//!   causes     └─ SET_OUTPUT                 └─ SET_OUTPUT       any process (pid -1), raw samples, CLOCK_MONOTONIC
//!                │                             │
//!                └──────── poll: readable at half a ring ────────┘
//! ```
//!
//! The kernel counts records that do not fit into a ring twice: in the next `PERF_RECORD_LOST`, and from Linux 6.0 on in the
//! event itself. The event's count is exact at any time and is used where the kernel has it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use guest_mem::HvaRange;
use perf_event_open_sys::bindings::{self as abi, perf_event_attr};
use perf_event_open_sys::{ioctls, perf_event_open};
use rustix::io::Errno;

use super::filter;
use super::mapping::Mapping;
use super::perf_record::{SAMPLE_TYPE, read};
use super::ring::{Damaged, Ring};
use super::source::{Record, Source};
use super::tracepoints::Listened;
use host::tracefs::last_errno;

/// The first page of a ring's mapping.
const PAGE: usize = 4096;
/// The limits on a CPU's ring (2 MiB are 32,768 ranges) and on all rings together, bytes.
pub const RING: usize = 2 << 20;
const ALL_RINGS: usize = 64 << 20;
/// The smallest ring that is tried where the host locks no more memory.
const SMALLEST_RING: usize = 16 << 10;

/// perf events cannot be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum PerfError {
    #[error(
        "perf tracepoints of all processes are refused: setcap cap_perfmon+ep zapscope, or sysctl \
         kernel.perf_event_paranoid=-1, or be root; a kernel locked down for confidentiality has none for anybody"
    )]
    Refused(#[source] Errno),
    #[error("{call} for {event} on CPU {cpu}{}", hint(source))]
    Call { call: &'static str, event: &'static str, cpu: u32, source: Errno },
    #[error("/sys/devices/system/cpu/online cannot be read, so the CPUs are not known")]
    Cpus(#[source] io::Error),
}

fn hint(errno: &Errno) -> &'static str {
    match *errno {
        Errno::NOSYS => ": this kernel has no perf events (CONFIG_PERF_EVENTS)",
        Errno::PERM => ": raise kernel.perf_event_mlock_kb, or be root",
        _ => "",
    }
}

/// perf events on all CPUs.
#[derive(Debug)]
pub struct Perf {
    cpus: Vec<OneCpu>,
    /// Whether the events count their losses (Linux 6.0 and later).
    counts_losses: bool,
    /// Losses reported in the rings.
    reported: u64,
}

#[derive(Debug)]
struct OneCpu {
    ring: Ring,
    /// The event that owns the ring.
    leader: OwnedFd,
    /// The events that write to the same ring.
    others: Vec<OwnedFd>,
}

impl Perf {
    /// Whether this process may open a tracepoint for all processes. The event is not enabled.
    pub fn permitted(id: u16) -> Result<(), Errno> {
        open_disabled(id, 0, &mut true).map(drop)
    }

    /// Opens the tracepoints `listened`, of which there may be none; ranges are recorded where they meet `watched`.
    pub fn open(listened: &[Listened], watched: &[HvaRange]) -> Result<Self, PerfError> {
        let Some((first, others)) = listened.split_first() else {
            return Ok(Self { cpus: Vec::new(), counts_losses: true, reported: 0 });
        };
        let online = fs::read_to_string("/sys/devices/system/cpu/online").map_err(PerfError::Cpus)?;
        let cpus =
            parse_cpus(online.trim()).ok_or_else(|| PerfError::Cpus(io::ErrorKind::InvalidData.into()))?;
        let ring = ring_size(cpus.len());
        let mut counts_losses = true;
        let mut perf = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            let mut one = OneCpu::open(first, watched, (cpu, ring), &mut counts_losses)?;
            for listened in others {
                one.join(listened, watched, cpu, &mut counts_losses)?;
            }
            perf.push(one);
        }
        // Enabled last, so that no event records before all of them exist.
        for one in &perf {
            for event in one.events() {
                // SAFETY: the descriptor is a perf event's; the call takes no pointer.
                let _ = unsafe { ioctls::ENABLE(event.as_raw_fd(), 0) };
            }
        }
        Ok(Self { cpus: perf, counts_losses, reported: 0 })
    }
}

impl OneCpu {
    fn open(
        listened: &Listened,
        watched: &[HvaRange],
        (cpu, ring_size): (u32, usize),
        counts_losses: &mut bool,
    ) -> Result<Self, PerfError> {
        let leader = open_filtered(listened, watched, cpu, counts_losses)?;
        let ring = map_ring(leader.as_fd(), ring_size).map_err(failed("mmap of the ring", listened, cpu))?;
        Ok(Self { ring, leader, others: Vec::new() })
    }

    /// Has another event write to the ring.
    fn join(
        &mut self,
        listened: &Listened,
        watched: &[HvaRange],
        cpu: u32,
        counts_losses: &mut bool,
    ) -> Result<(), PerfError> {
        let event = open_filtered(listened, watched, cpu, counts_losses)?;
        // SAFETY: both descriptors are perf events'; the call takes no pointer.
        let done = unsafe { ioctls::SET_OUTPUT(event.as_raw_fd(), self.leader.as_raw_fd()) };
        if done < 0 {
            return Err(failed("PERF_EVENT_IOC_SET_OUTPUT", listened, cpu)(last_errno()));
        }
        self.others.push(event);
        Ok(())
    }

    fn events(&self) -> impl Iterator<Item = &OwnedFd> {
        std::iter::once(&self.leader).chain(&self.others)
    }
}

fn failed(call: &'static str, listened: &Listened, cpu: u32) -> impl FnOnce(Errno) -> PerfError {
    let event = listened.path;
    move |source| PerfError::Call { call, event, cpu, source }
}

/// Opens an event and sets its filter; it is not enabled yet.
fn open_filtered(
    listened: &Listened,
    watched: &[HvaRange],
    cpu: u32,
    counts_losses: &mut bool,
) -> Result<OwnedFd, PerfError> {
    let event = open_event(listened, cpu, counts_losses)?;
    if let Some(text) = filter::text(&listened.filtered, watched) {
        set_filter(event.as_fd(), &text).map_err(failed("PERF_EVENT_IOC_SET_FILTER", listened, cpu))?;
    }
    Ok(event)
}

fn open_event(listened: &Listened, cpu: u32, counts_losses: &mut bool) -> Result<OwnedFd, PerfError> {
    open_disabled(listened.id, cpu, counts_losses).map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => PerfError::Refused(errno),
        source => PerfError::Call { call: "perf_event_open", event: listened.path, cpu, source },
    })
}

/// Opens a tracepoint for all processes; without the count of losses where the kernel does not know it.
fn open_disabled(id: u16, cpu: u32, counts_losses: &mut bool) -> Result<OwnedFd, Errno> {
    loop {
        let mut attributes = attributes(id, *counts_losses);
        let (any_process, no_group) = (-1, -1);
        // SAFETY: the attributes are as long as they say and are only read; all else is by value.
        let raw = unsafe {
            perf_event_open(
                &mut attributes,
                any_process,
                cpu as i32,
                no_group,
                abi::PERF_FLAG_FD_CLOEXEC.into(),
            )
        };
        if raw >= 0 {
            // SAFETY: the kernel has just returned this descriptor, which has no other owner.
            return Ok(unsafe { OwnedFd::from_raw_fd(raw) });
        }
        match last_errno() {
            // Before Linux 6.0.
            Errno::INVAL if *counts_losses => *counts_losses = false,
            errno => return Err(errno),
        }
    }
}

fn attributes(id: u16, counts_losses: bool) -> perf_event_attr {
    let mut attributes = perf_event_attr {
        type_: abi::PERF_TYPE_TRACEPOINT,
        size: size_of::<perf_event_attr>() as u32,
        config: id.into(),
        sample_type: SAMPLE_TYPE.into(),
        read_format: if counts_losses { abi::PERF_FORMAT_LOST.into() } else { 0 },
        clockid: libc::CLOCK_MONOTONIC,
        ..Default::default()
    };
    attributes.sample_period = 1;
    // A watermark in bytes; 0 stands for half of the ring.
    attributes.set_watermark(1);
    attributes.set_use_clockid(1);
    attributes.set_disabled(1);
    attributes
}

/// Maps a ring of `size` bytes, or of the largest size that the host allows.
fn map_ring(event: BorrowedFd<'_>, mut size: usize) -> Result<Ring, Errno> {
    loop {
        match Mapping::of(event, PAGE + size) {
            Ok(memory) => return Ok(Ring::new(Arc::new(memory), PAGE)),
            Err(Errno::PERM | Errno::NOMEM) if size > SMALLEST_RING => size /= 2,
            Err(errno) => return Err(errno),
        }
    }
}

fn set_filter(event: BorrowedFd<'_>, text: &str) -> Result<(), Errno> {
    let text = CString::new(text).map_err(|_| Errno::INVAL)?;
    // SAFETY: the text is NUL-terminated, and only read although the pointer is mutable.
    let done = unsafe { ioctls::SET_FILTER(event.as_raw_fd(), text.as_ptr().cast_mut()) };
    if done < 0 { Err(last_errno()) } else { Ok(()) }
}

impl Source for Perf {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        self.cpus.iter().map(|cpu| cpu.leader.as_fd()).collect()
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Record<'_>)) -> Result<(), Damaged> {
        let reported = &mut self.reported;
        for cpu in &mut self.cpus {
            cpu.ring.drain(|kind, body| read(kind, body).pass(sink, reported))?;
        }
        Ok(())
    }

    fn lost(&mut self) -> u64 {
        if !self.counts_losses {
            return self.reported;
        }
        let each = self.cpus.iter().flat_map(OneCpu::events).map(|event| {
            // With `PERF_FORMAT_LOST` a read returns the number of events, and of lost ones.
            let mut words = [0; 16];
            match rustix::io::read(event, &mut words) {
                Ok(16) => u64::from_ne_bytes(words[8..].try_into().expect("eight bytes")),
                _ => 0,
            }
        });
        each.sum()
    }
}

/// Bytes of each CPU's ring on a host with so many CPUs.
pub(super) fn ring_size(cpus: usize) -> usize {
    let each = (ALL_RINGS / cpus.max(1)).clamp(SMALLEST_RING, RING);
    1 << each.ilog2()
}

/// CPUs from a list like `0-3,8`.
pub(super) fn parse_cpus(text: &str) -> Option<Vec<u32>> {
    /// More than a kernel supports.
    const MOST: u32 = 1 << 16;
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MOST || first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_cpus_get_small_rings() {
        assert_eq!(
            [1, 2, 32, 33, 100, 10_000].map(ring_size),
            [RING, RING, RING, RING / 2, RING / 4, SMALLEST_RING]
        );
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(parse_cpus("0-1"), Some(vec![0, 1]));
        assert_eq!(parse_cpus("0,2-4,9"), Some(vec![0, 2, 3, 4, 9]));
        for text in ["", "a", "3-1", "0-99999999", "1-"] {
            assert_eq!(parse_cpus(text), None, "{text}");
        }
    }
}
