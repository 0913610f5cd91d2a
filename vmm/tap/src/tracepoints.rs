//! The tracepoints that are recorded, and the events that their records are.
//!
//! | interest | tracepoints | purpose |
//! | --- | --- | --- |
//! | ranges | `kvm:kvm_unmap_hva_range` | each range that KVM is told to drop, selected by address in the kernel |
//! | causes | vmscan, compaction, migrate: a begin and an end each | the work of the thread that announced a range |
//! | calls | madvise, mprotect, munmap, mremap, fallocate, process_madvise, fork, userfaultfd's ioctls | the same for system calls of other processes |
//! | KVM | `kvm:kvm_page_fault`, kvmmmu, tlb | what KVM did, counted |
//!
//! Tracepoints that the kernel lacks are listed in the layout. Only the ranges are required.

use guest_mem::{Hva, HvaRange};
use notifier_bridge::By;
use rustix::io::Errno;

use super::filter::Filtered;
use super::format::{Field, Format, FormatError};
use host::tracefs::{Tracefs, TracefsError};

/// Work of a thread during which it announces ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// It reclaims memory because it found none free.
    DirectReclaim,
    /// It reclaims memory of a cgroup: a limit, or a write to `memory.reclaim`.
    MemcgReclaim,
    /// It reclaims memory of its node before it uses another one.
    NodeReclaim,
    /// It moves pages to make room for a large one.
    Compaction,
    /// It moves pages.
    Migration,
    /// A system call.
    Call(Call),
}

impl Work {
    /// The maker of ranges that the work is; `None` for a system call, which does not tell by itself.
    pub(super) fn maker(self) -> Option<By> {
        match self {
            Self::DirectReclaim | Self::NodeReclaim => Some(By::DirectReclaim),
            Self::MemcgReclaim => Some(By::MemcgReclaim),
            Self::Compaction => Some(By::Compaction),
            Self::Migration => Some(By::Migration),
            Self::Call(_) => None,
        }
    }
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
    /// An ioctl of userfaultfd that announces a range, by its number. Its end is not recorded: it lasts until the thread
    /// begins other work.
    Userfault(u32),
}

/// An event of KVM that is counted and not listed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::EnumCount, strum::IntoStaticStr,
)]
#[strum(serialize_all = "kebab-case")]
pub enum KvmEvent {
    /// Page faults by guests. kvm_pvm does not have this tracepoint's event.
    KvmPageFaults,
    /// SPTEs that were set.
    SptesSet,
    /// Shadow pages that were zapped.
    ShadowPagesZapped,
    /// Zaps of all of a VM's SPTEs.
    ZapAlls,
    /// SPTEs that the TDP MMU changed.
    TdpSptesChanged,
    /// TLB flushes.
    TlbFlushes,
    /// Faults resolved by an SPTE: one event for a fault, however many neighbours are mapped with it.
    SptesRequested,
}

impl KvmEvent {
    /// The name in records.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The content of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// KVM is told to drop a range.
    Range(HvaRange),
    /// A thread begins a piece of work.
    Begin(Work),
    /// It ends it.
    End(Work),
    /// An event of KVM.
    Kvm(KvmEvent),
}

/// A record of a tracepoint as the kernel wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample<'a> {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The record, laid out by its format; padding may follow.
    pub raw: &'a [u8],
}

/// A decoded record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The content.
    pub what: What,
}

/// Which tracepoints are recorded beside the ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Reclaim, compaction and migration.
    pub causes: bool,
    /// System calls that change mappings, of all processes.
    pub calls: bool,
    /// Events of KVM.
    pub kvm: bool,
}

/// The content of a tracepoint's records, apart from the ranges.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Fixed(What),
    /// The begin of a call, of which an argument is recorded.
    Argument(&'static str, fn(u32) -> Call),
}

/// A tracepoint's path in tracefs, and its content.
type Tracepoint = (&'static str, Kind);

const RANGES: &str = "kvm/kvm_unmap_hva_range";

const fn begin(work: Work) -> Kind {
    Kind::Fixed(What::Begin(work))
}

const fn end(work: Work) -> Kind {
    Kind::Fixed(What::End(work))
}

const CAUSES: [Tracepoint; 10] = [
    ("vmscan/mm_vmscan_direct_reclaim_begin", begin(Work::DirectReclaim)),
    ("vmscan/mm_vmscan_direct_reclaim_end", end(Work::DirectReclaim)),
    ("vmscan/mm_vmscan_memcg_reclaim_begin", begin(Work::MemcgReclaim)),
    ("vmscan/mm_vmscan_memcg_reclaim_end", end(Work::MemcgReclaim)),
    ("vmscan/mm_vmscan_node_reclaim_begin", begin(Work::NodeReclaim)),
    ("vmscan/mm_vmscan_node_reclaim_end", end(Work::NodeReclaim)),
    ("compaction/mm_compaction_begin", begin(Work::Compaction)),
    ("compaction/mm_compaction_end", end(Work::Compaction)),
    ("migrate/mm_migrate_pages_start", begin(Work::Migration)),
    ("migrate/mm_migrate_pages", end(Work::Migration)),
];

/// The enter and the exit of a system call. The exit's record does not have the argument.
macro_rules! call {
    ($name:literal, $call:expr) => {
        call!($name, begin(Work::Call($call)), $call)
    };
    ($name:literal, $enter:expr, $call:expr) => {
        [
            (concat!("syscalls/sys_enter_", $name), $enter),
            (concat!("syscalls/sys_exit_", $name), end(Work::Call($call))),
        ]
    };
}

const CALLS: [[Tracepoint; 2]; 12] = [
    call!("madvise", Kind::Argument("behavior", Call::Madvise), Call::Madvise(0)),
    call!("process_madvise", Kind::Argument("behavior", Call::ProcessMadvise), Call::ProcessMadvise(0)),
    call!("mprotect", Call::Mprotect),
    call!("pkey_mprotect", Call::Mprotect),
    call!("munmap", Call::Munmap),
    call!("mmap", Call::Mmap),
    call!("mremap", Call::Mremap),
    call!("fallocate", Call::Fallocate),
    call!("fork", Call::Fork),
    call!("vfork", Call::Fork),
    call!("clone", Call::Fork),
    call!("clone3", Call::Fork),
];

/// Without its exit, which would fire for every KVM_RUN of the host.
const IOCTL: [Tracepoint; 1] = [("syscalls/sys_enter_ioctl", Kind::Argument("cmd", Call::Userfault))];

const fn kvm(event: KvmEvent) -> Kind {
    Kind::Fixed(What::Kvm(event))
}

const KVM: [Tracepoint; 7] = [
    ("kvm/kvm_page_fault", kvm(KvmEvent::KvmPageFaults)),
    ("kvmmmu/kvm_mmu_set_spte", kvm(KvmEvent::SptesSet)),
    ("kvmmmu/kvm_mmu_prepare_zap_page", kvm(KvmEvent::ShadowPagesZapped)),
    ("kvmmmu/kvm_mmu_zap_all_fast", kvm(KvmEvent::ZapAlls)),
    ("kvmmmu/kvm_tdp_mmu_spte_changed", kvm(KvmEvent::TdpSptesChanged)),
    ("tlb/tlb_flush", kvm(KvmEvent::TlbFlushes)),
    ("kvmmmu/kvm_mmu_spte_requested", kvm(KvmEvent::SptesRequested)),
];

/// The tracepoint of the ranges cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum LayoutError {
    #[error("the kernel's account needs the tracepoint kvm:kvm_unmap_hva_range{}", ranges_remedy(.0.source))]
    NoRanges(#[source] TracefsError),
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

/// A tracepoint that is recorded.
#[derive(Clone, Debug)]
pub struct Listened {
    /// Its path below `events`: `kvm/kvm_unmap_hva_range`.
    pub path: &'static str,
    /// Its number.
    pub id: u16,
    /// Which of its events the kernel records.
    pub filtered: Filtered,
    shape: Shape,
}

/// A [`Kind`] as this kernel lays it out.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Range { start: Field, end: Field },
    Fixed(What),
    Argument(Field, fn(u32) -> Call),
}

/// The layouts of all tracepoints that are recorded.
#[derive(Clone, Debug)]
pub struct Layout {
    kind: Field,
    /// Whether the ranges' record has the two addresses and no other field.
    names_its_arguments: bool,
    listened: Vec<Listened>,
    missing: Vec<String>,
}

impl Layout {
    /// Reads the formats of what `interest` names.
    pub fn read(tracefs: &Tracefs, interest: Interest) -> Result<Self, LayoutError> {
        Self::of(interest, |path| tracefs.read(&format!("events/{path}/format")))
    }

    /// The same from texts that `format` returns by path.
    pub fn of(
        interest: Interest,
        format: impl Fn(&str) -> Result<String, TracefsError>,
    ) -> Result<Self, LayoutError> {
        let ranges = Format::parse(&format(RANGES).map_err(LayoutError::NoRanges)?)?;
        let kind = ranges.field("common_type")?;
        let shape = Shape::Range { start: ranges.word("start")?, end: ranges.word("end")? };
        let filtered = Filtered::ByAddress;
        let mut listened = vec![Listened { path: RANGES, id: ranges.id(), filtered, shape }];
        let mut missing = Vec::new();
        let wanted = [
            (interest.causes, &CAUSES[..]),
            (interest.calls, CALLS.as_flattened()),
            (interest.calls, &IOCTL),
            (interest.kvm, &KVM),
        ];
        for tracepoint in wanted.iter().filter(|(wanted, _)| *wanted).flat_map(|(_, all)| *all) {
            let read = |text: String| Ok(Listened::of(tracepoint, &Format::parse(&text)?)?);
            match format(tracepoint.0).map_err(LayoutError::NoRanges).and_then(read) {
                Ok(one) => listened.push(one),
                Err(_) => missing.push(tracepoint.0.replace('/', ":")),
            }
        }
        let names_its_arguments = ranges.own_fields() == ["start", "end"];
        Ok(Self { kind, names_its_arguments, listened, missing })
    }

    /// The tracepoints, the ranges first.
    pub fn listened(&self) -> &[Listened] {
        &self.listened
    }

    /// Tracepoints that this kernel lacks, as `group:name`.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Limits the events of KVM to these threads, by their numbers in the initial PID namespace: a host's VMs together have
    /// far too many events to be read.
    pub fn limit_kvm_events(&mut self, threads: &[u32]) {
        let is_kvm = |listened: &&mut Listened| matches!(listened.shape, Shape::Fixed(What::Kvm(_)));
        let of_kvm = self.listened.iter_mut().filter(is_kvm);
        of_kvm.for_each(|listened| listened.filtered = Filtered::ByThreads(threads.to_vec()));
    }

    /// The events of KVM that are recorded.
    pub fn kvm_events(&self) -> impl Iterator<Item = KvmEvent> {
        self.listened.iter().filter_map(|listened| match listened.shape {
            Shape::Fixed(What::Kvm(event)) => Some(event),
            _ => None,
        })
    }

    /// Whether a range's fields are `start` and `end` and no others. Then the tracepoint's arguments are these in the same
    /// order: the kernel tells the names of fields, and not those of arguments.
    pub fn names_its_arguments(&self) -> bool {
        self.names_its_arguments
    }

    /// Decodes a record; `None` if its tracepoint is not recorded, or its content is not valid.
    #[inline]
    pub fn decode(&self, sample: &Sample<'_>) -> Option<Event> {
        let id = self.kind.read(sample.raw)? as u16;
        let listened = self.listened.iter().find(|listened| listened.id == id)?;
        let what = match listened.shape {
            Shape::Range { start, end } => {
                let (start, end) = (start.read(sample.raw)?, end.read(sample.raw)?);
                What::Range(HvaRange::new(Hva::new(start), Hva::new(end))?)
            }
            Shape::Fixed(what) => what,
            Shape::Argument(field, call) => What::Begin(Work::Call(call(field.read(sample.raw)? as u32))),
        };
        Some(Event { time_ns: sample.time_ns, pid: sample.pid, tid: sample.tid, what })
    }
}

impl Listened {
    fn of(&(path, kind): &Tracepoint, format: &Format) -> Result<Self, FormatError> {
        let (shape, filtered) = match kind {
            Kind::Fixed(what) => (Shape::Fixed(what), Filtered::No),
            Kind::Argument(field, call) => {
                let filtered = if field == "cmd" { Filtered::ByIoctl } else { Filtered::No };
                (Shape::Argument(format.field(field)?, call), filtered)
            }
        };
        Ok(Self { path, id: format.id(), filtered, shape })
    }
}
