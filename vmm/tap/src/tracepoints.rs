//! The tracepoints that are listened to, and what each of them says.
//!
//! | interest | tracepoints | what for |
//! | --- | --- | --- |
//! | ranges | `kvm:kvm_unmap_hva_range` | each range that KVM is told to drop, selected by address in the kernel |
//! | causes | vmscan, compaction, migrate: a begin and an end each | what the thread was at that announced a range |
//! | calls | madvise, mprotect, munmap, mremap, fallocate, process_madvise, fork, userfaultfd's ioctls | the same, where the calls are not ours |
//! | faults | `kvm:kvm_page_fault`, kvmmmu, tlb | what KVM did about it; one event for each of its faults |
//!
//! What the kernel lacks is named in the result and is no error; but without the ranges there is no tap.

use guest_mem::{Hva, HvaRange};
use rustix::io::Errno;

use super::filter::Filtered;
use super::format::{Field, Format, FormatError};
use super::hit::Sample;
use host::tracefs::{Tracefs, TracefsError};

/// What a thread is at while it announces ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// It found no free memory, and reclaims some itself.
    DirectReclaim,
    /// Its cgroup is at a limit, or somebody wrote to `memory.reclaim`.
    MemcgReclaim,
    /// Its node is to be emptied before another is used.
    NodeReclaim,
    /// It moves pages to make room for a large one.
    Compaction,
    /// It moves pages.
    Migration,
    /// A system call.
    Call(Call),
}

/// A system call that changes mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// `madvise`, with its advice.
    Madvise(u32),
    /// `process_madvise`, with its advice.
    ProcessMadvise(u32),
    /// `mprotect` or `pkey_mprotect`.
    Mprotect,
    /// `munmap`.
    Munmap,
    /// `mmap`, over something.
    Mmap,
    /// `mremap`.
    Mremap,
    /// `fallocate`: a hole.
    Fallocate,
    /// `fork`, `vfork`, `clone`, `clone3`.
    Fork,
    /// An ioctl of userfaultfd that announces, by its number. Its end is not seen: it lasts until the thread begins
    /// something else.
    Userfault(u32),
}

/// What KVM did, counted and not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deed {
    /// A page fault by a guest. Not every KVM tells of it: kvm_pvm does not.
    PageFault,
    /// An SPTE was set.
    SetSpte,
    /// A page of the shadow is zapped.
    ZapPage,
    /// All of a VM's SPTEs are zapped.
    ZapAll,
    /// The TDP MMU changed an SPTE.
    TdpChange,
    /// A TLB flush.
    TlbFlush,
    /// A fault is answered by an SPTE: one for each that is, however many neighbours are mapped with it.
    SpteRequest,
}

impl Deed {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PageFault,
        Self::SetSpte,
        Self::ZapPage,
        Self::ZapAll,
        Self::TdpChange,
        Self::TlbFlush,
        Self::SpteRequest,
    ];

    /// The name in records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PageFault => "kvm-page-faults",
            Self::SetSpte => "sptes-set",
            Self::ZapPage => "shadow-pages-zapped",
            Self::ZapAll => "zap-alls",
            Self::TdpChange => "tdp-sptes-changed",
            Self::TlbFlush => "tlb-flushes",
            Self::SpteRequest => "sptes-requested",
        }
    }
}

/// What one record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// KVM is told to drop a range.
    Range(HvaRange),
    /// A thread begins with something.
    Begin(Work),
    /// It is done with it.
    End(Work),
    /// KVM did something.
    Did(Deed),
}

/// One record, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When: `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The process in whose context; 0 where the source does not say.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// What happened.
    pub what: What,
}

/// What is wanted of the kernel. Ranges always are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// What threads are at.
    pub causes: bool,
    /// System calls that change mappings, everybody's.
    pub calls: bool,
    /// What KVM does.
    pub deeds: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Range,
    Begin(Work),
    End(Work),
    /// Which call it is, an argument says too.
    Argument(&'static str, fn(u32) -> Call),
    Did(Deed),
}

/// Where in tracefs, and what it says.
type Tracepoint = (&'static str, Kind);

const RANGES: Tracepoint = ("kvm/kvm_unmap_hva_range", Kind::Range);

const CAUSES: [Tracepoint; 10] = [
    ("vmscan/mm_vmscan_direct_reclaim_begin", Kind::Begin(Work::DirectReclaim)),
    ("vmscan/mm_vmscan_direct_reclaim_end", Kind::End(Work::DirectReclaim)),
    ("vmscan/mm_vmscan_memcg_reclaim_begin", Kind::Begin(Work::MemcgReclaim)),
    ("vmscan/mm_vmscan_memcg_reclaim_end", Kind::End(Work::MemcgReclaim)),
    ("vmscan/mm_vmscan_node_reclaim_begin", Kind::Begin(Work::NodeReclaim)),
    ("vmscan/mm_vmscan_node_reclaim_end", Kind::End(Work::NodeReclaim)),
    ("compaction/mm_compaction_begin", Kind::Begin(Work::Compaction)),
    ("compaction/mm_compaction_end", Kind::End(Work::Compaction)),
    ("migrate/mm_migrate_pages_start", Kind::Begin(Work::Migration)),
    ("migrate/mm_migrate_pages", Kind::End(Work::Migration)),
];

const fn enter(call: Call) -> Kind {
    Kind::Begin(Work::Call(call))
}

const fn exit(call: Call) -> Kind {
    Kind::End(Work::Call(call))
}

const CALLS: [Tracepoint; 25] = [
    ("syscalls/sys_enter_madvise", Kind::Argument("behavior", Call::Madvise)),
    ("syscalls/sys_exit_madvise", exit(Call::Madvise(0))),
    ("syscalls/sys_enter_process_madvise", Kind::Argument("behavior", Call::ProcessMadvise)),
    ("syscalls/sys_exit_process_madvise", exit(Call::ProcessMadvise(0))),
    ("syscalls/sys_enter_mprotect", enter(Call::Mprotect)),
    ("syscalls/sys_exit_mprotect", exit(Call::Mprotect)),
    ("syscalls/sys_enter_pkey_mprotect", enter(Call::Mprotect)),
    ("syscalls/sys_exit_pkey_mprotect", exit(Call::Mprotect)),
    ("syscalls/sys_enter_munmap", enter(Call::Munmap)),
    ("syscalls/sys_exit_munmap", exit(Call::Munmap)),
    ("syscalls/sys_enter_mmap", enter(Call::Mmap)),
    ("syscalls/sys_exit_mmap", exit(Call::Mmap)),
    ("syscalls/sys_enter_mremap", enter(Call::Mremap)),
    ("syscalls/sys_exit_mremap", exit(Call::Mremap)),
    ("syscalls/sys_enter_fallocate", enter(Call::Fallocate)),
    ("syscalls/sys_exit_fallocate", exit(Call::Fallocate)),
    ("syscalls/sys_enter_fork", enter(Call::Fork)),
    ("syscalls/sys_exit_fork", exit(Call::Fork)),
    ("syscalls/sys_enter_vfork", enter(Call::Fork)),
    ("syscalls/sys_exit_vfork", exit(Call::Fork)),
    ("syscalls/sys_enter_clone", enter(Call::Fork)),
    ("syscalls/sys_exit_clone", exit(Call::Fork)),
    ("syscalls/sys_enter_clone3", enter(Call::Fork)),
    ("syscalls/sys_exit_clone3", exit(Call::Fork)),
    // Not its exit, which would fire for every KVM_RUN of the host.
    ("syscalls/sys_enter_ioctl", Kind::Argument("cmd", Call::Userfault)),
];

const DEEDS: [Tracepoint; 7] = [
    ("kvm/kvm_page_fault", Kind::Did(Deed::PageFault)),
    ("kvmmmu/kvm_mmu_set_spte", Kind::Did(Deed::SetSpte)),
    ("kvmmmu/kvm_mmu_prepare_zap_page", Kind::Did(Deed::ZapPage)),
    ("kvmmmu/kvm_mmu_zap_all_fast", Kind::Did(Deed::ZapAll)),
    ("kvmmmu/kvm_tdp_mmu_spte_changed", Kind::Did(Deed::TdpChange)),
    ("tlb/tlb_flush", Kind::Did(Deed::TlbFlush)),
    ("kvmmmu/kvm_mmu_spte_requested", Kind::Did(Deed::SpteRequest)),
];

/// Why the kernel's tracepoints cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// There is no such tracepoint, or we may not read of it.
    #[error("the kernel's account needs the tracepoint kvm:kvm_unmap_hva_range{}", ranges_remedy(.0.source))]
    NoRanges(#[source] TracefsError),
    /// It does not look as it must.
    #[error("the kernel's account cannot read its tracepoint")]
    Format(#[from] FormatError),
}

fn ranges_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => ": load KVM's module",
        Errno::PERM | Errno::ACCESS => ": be root",
        _ => "",
    }
}

/// A tracepoint that is listened to.
#[derive(Clone, Debug)]
pub struct Listened {
    /// Where in `events`: `kvm/kvm_unmap_hva_range`.
    pub path: &'static str,
    /// Its number.
    pub id: u16,
    /// What the kernel is to pick of its hits.
    pub filtered: Filtered,
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
enum Shape {
    Range { start: Field, end: Field },
    Begin(Work),
    End(Work),
    Argument(Field, fn(u32) -> Call),
    Did(Deed),
}

/// How the records of all tracepoints that are listened to are decoded.
#[derive(Clone, Debug)]
pub struct Layout {
    kind: Field,
    thread: Field,
    /// Whether the ranges' record is their two addresses, in the order of the tracepoint's arguments.
    names_its_arguments: bool,
    listened: Vec<Listened>,
    missing: Vec<String>,
}

impl Layout {
    /// Reads the formats of what `interest` names.
    ///
    /// # Errors
    /// [`LayoutError`]: no ranges.
    pub fn read(tracefs: &Tracefs, interest: Interest) -> Result<Self, LayoutError> {
        Self::of(interest, |path| tracefs.read(&format!("events/{path}/format")))
    }

    /// The same from texts that `format` gives, by path.
    ///
    /// # Errors
    /// As [`Layout::read`].
    pub fn of(
        interest: Interest,
        format: impl Fn(&str) -> Result<String, TracefsError>,
    ) -> Result<Self, LayoutError> {
        let ranges = Format::parse(&format(RANGES.0).map_err(LayoutError::NoRanges)?)?;
        let (kind, thread) = (ranges.field("common_type")?, ranges.field("common_pid")?);
        let mut listened = vec![Listened::of(&RANGES, &ranges)?];
        let mut missing = Vec::new();
        let wanted =
            [(interest.causes, &CAUSES[..]), (interest.calls, &CALLS[..]), (interest.deeds, &DEEDS[..])];
        for tracepoint in wanted.iter().filter(|(wanted, _)| *wanted).flat_map(|(_, all)| *all) {
            let read = |text: String| Ok(Listened::of(tracepoint, &Format::parse(&text)?)?);
            match format(tracepoint.0).map_err(LayoutError::NoRanges).and_then(read) {
                Ok(one) => listened.push(one),
                Err(_) => missing.push(tracepoint.0.replace('/', ":")),
            }
        }
        let names_its_arguments = ranges.own_fields() == ["start", "end"];
        Ok(Self { kind, thread, names_its_arguments, listened, missing })
    }

    /// What is listened to, the ranges first.
    pub fn listened(&self) -> &[Listened] {
        &self.listened
    }

    /// Tracepoints that this kernel lacks, as `group:name`.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Has the kernel pick the deeds of these threads, which are numbered as the initial PID namespace does it: those of
    /// all VMs of a host are far too many to be looked at here.
    pub fn narrow_deeds(&mut self, threads: &[u32]) {
        let deeds = self.listened.iter_mut().filter(|listened| matches!(listened.shape, Shape::Did(_)));
        deeds.for_each(|listened| listened.filtered = Filtered::ByThreads(threads.to_vec()));
    }

    /// The deeds that are listened to.
    pub fn deeds(&self) -> impl Iterator<Item = Deed> {
        self.listened.iter().filter_map(|listened| match listened.shape {
            Shape::Did(deed) => Some(deed),
            _ => None,
        })
    }

    /// Whether a range's fields are `start` and `end` and nothing else. Then they are the tracepoint's arguments, too, in
    /// the same order: the kernel tells the names of fields alone.
    pub fn names_its_arguments(&self) -> bool {
        self.names_its_arguments
    }

    /// The thread that a record names. Numbered in the initial namespace.
    pub fn thread(&self, raw: &[u8]) -> Option<u32> {
        self.thread.read(raw).map(|thread| thread as u32)
    }

    /// What a record says; `None` of one that is not listened to or makes no sense.
    #[inline]
    pub fn decode(&self, sample: &Sample<'_>) -> Option<Event> {
        let id = self.kind.read(sample.raw)? as u16;
        let listened = self.listened.iter().find(|listened| listened.id == id)?;
        let what = match listened.shape {
            Shape::Range { start, end } => {
                let (start, end) = (start.read(sample.raw)?, end.read(sample.raw)?);
                What::Range(HvaRange::new(Hva::new(start), Hva::new(end))?)
            }
            Shape::Begin(work) => What::Begin(work),
            Shape::End(work) => What::End(work),
            Shape::Argument(field, call) => What::Begin(Work::Call(call(field.read(sample.raw)? as u32))),
            Shape::Did(deed) => What::Did(deed),
        };
        Some(Event { time_ns: sample.time_ns, pid: sample.pid, tid: sample.tid, what })
    }
}

impl Listened {
    fn of(&(path, kind): &Tracepoint, format: &Format) -> Result<Self, FormatError> {
        let (shape, filtered) = match kind {
            Kind::Range => {
                (Shape::Range { start: format.word("start")?, end: format.word("end")? }, Filtered::ByAddress)
            }
            Kind::Begin(work) => (Shape::Begin(work), Filtered::No),
            Kind::End(work) => (Shape::End(work), Filtered::No),
            Kind::Argument(field, call) => {
                let filtered = if field == "cmd" { Filtered::ByIoctl } else { Filtered::No };
                (Shape::Argument(format.field(field)?, call), filtered)
            }
            Kind::Did(deed) => (Shape::Did(deed), Filtered::No),
        };
        Ok(Self { path, id: format.id(), filtered, shape })
    }
}
