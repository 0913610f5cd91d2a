//! What happens in a trial, one event after another. Pages count from the beginning of the memory under test, times are
//! nanoseconds since the trial began, by `CLOCK_MONOTONIC`.

use std::collections::BTreeMap;

use guest_mem::{Hva, HvaRange, MapLevel, Order, PAGE_SIZE, Victim};
use notifier_bridge::{By, Cause, GivenBack, Invalidation, Ranges};
use serde::{Deserialize, Serialize};

use super::layout::LayoutRun;
use super::promise::Promise;
use super::setting::Setting;
use super::wire;

/// An event of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A trial begins: the first event of each.
    Trial(Box<Setting>),
    /// A step begins.
    StepBegan {
        /// When.
        at_ns: u64,
        /// Which step.
        step: Step,
    },
    /// The step that began last is over.
    StepEnded {
        /// When.
        at_ns: u64,
        /// What the secondary MMU counted meanwhile.
        counted: Counted,
    },
    /// A reclaim step asks for memory.
    Asked {
        /// By so many operations.
        victims: u64,
        /// So many bytes.
        bytes: u64,
    },
    /// An operation begins: what follows up to its end belongs to it.
    OperationBegan(Operation),
    /// The kernel's mapping of some pages is about to change, and listeners are told.
    Announced(Announcement),
    /// A system call of the operation's, and what the kernel is to announce for it.
    Called(Called),
    /// The operation that began last is over.
    OperationEnded(OperationEnd),
    /// How far the hot loops came in a while.
    Touched {
        /// Whether memory was taken meanwhile.
        disturbed: bool,
        /// Touches by all of them.
        touches: u64,
        /// The while, nanoseconds.
        ns: u64,
    },
    /// A counter was read at the begin and the end of a span: the difference, `None` where it is not kept here.
    Reading {
        /// Which counter.
        counter: Counter,
        /// How far it went.
        count: Option<u64>,
    },
    /// A vCPU stood still.
    Stall(Stall),
    /// The kernel announced a range.
    KernelRange(KernelRange),
    /// The kernel's account of a reclaim step is complete but for `lost` events.
    KernelSpan {
        /// Events that were lost.
        lost: u64,
    },
    /// There is no account by the kernel of this trial, for this reason.
    NoAccount(String),
    /// What the device on the host's page tables dropped.
    Device(DeviceCounts),
    /// What the guest's operating system gave back of its own accord.
    GivenBack(GivenBack),
    /// What came back by itself, where this process swaps.
    Swapped(Swapped),
    /// The guest's own counters at the end.
    GuestCounters(BTreeMap<String, u64>),
    /// Every page was looked at.
    Verified {
        /// Pages that did not hold what they should.
        wrong: u64,
    },
    /// How fast the hot loops get their translations back.
    Refill(Refill),
    /// By how much the guest's times may be off, either way.
    Clock {
        /// Nanoseconds.
        uncertain_ns: u64,
    },
    /// A sentence for whoever reads the row.
    Warned(String),
}

/// A step of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Every page is written.
    Fill,
    /// Hot loops are started.
    Hot(HotLoops),
    /// The loops run undisturbed.
    Baseline,
    /// Memory is taken, which the host maps so.
    Reclaim(Vec<LayoutRun>),
    /// The loops are stopped.
    Stop,
    /// Every page taken is read once, lowest first.
    Refault,
    /// Every other page is read once, lowest first.
    Sweep,
    /// Something beside the memory under test.
    Other,
}

impl Step {
    /// The step's word in a scenario.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Hot(_) => "hot",
            Self::Baseline => "baseline",
            Self::Reclaim(_) => "reclaim",
            Self::Stop => "stop",
            Self::Refault => "refault",
            Self::Sweep => "sweep",
            Self::Other => "other",
        }
    }
}

/// Loops over pages of the memory under test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotLoops {
    /// The pages they visit, over and over; `None` if they draw them, or go by a stride.
    pub list: Option<Vec<u32>>,
    /// Every how many pages, if there is no list: 1 is sequential.
    pub stride: Option<u64>,
    /// Whether they write what they visit.
    pub writes: bool,
    /// How many run it.
    pub loops: u32,
}

impl HotLoops {
    /// Visits in one pass of one loop over so many pages; 0 where the loop draws its pages.
    pub fn visits(&self, pages: u64) -> u64 {
        match (&self.list, self.stride) {
            (Some(list), _) => list.len() as u64,
            (None, Some(stride)) => pages.div_ceil(stride.max(1)),
            (None, None) => 0,
        }
    }

    /// Whether the loops draw their pages.
    pub fn draws(&self) -> bool {
        self.list.is_none() && self.stride.is_none()
    }
}

/// What the secondary MMU counted in a step, where it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Faults that installed a translation, those on the guest's own memory among them.
    pub faults: Option<u64>,
    /// Faults that were to be tried again.
    pub retries: Option<u64>,
    /// Remote TLB flushes.
    pub flushes: Option<u64>,
}

/// An operation on guest memory, as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// When it began.
    pub at_ns: u64,
    /// Touches that the hot loops had made by then.
    pub touches: u64,
    /// The first page it was asked for.
    pub first_page: u64,
    /// How many pages, from the first.
    pub pages: u64,
}

/// What an operation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationEnd {
    /// Bytes that left.
    pub evicted_bytes: u64,
    /// What the kernel was expected to announce for it; `None` where the kernel, or the use of the pages, decided.
    pub expected: Option<Ranges>,
    /// Leaf translations that went, where nobody but the kernel drops them and so nobody else counts.
    pub dropped: Dropped,
    /// What the memory was.
    pub was: Was,
    /// Nanoseconds in its system calls; `None` where it was not by address.
    pub spent_ns: Option<u64>,
    /// How often its system call was made again, because the kernel had passed over a page in use.
    pub repeated: u32,
}

/// Leaf translations that an operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dropped {
    /// Listeners drop them, and say so.
    #[default]
    ByListeners,
    /// The kernel alone does, by KVM's statistics.
    ByKernel(Leaves),
    /// The same, and KVM has no such statistic.
    Unknown,
}

/// Leaf translations by their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaves {
    /// Of 4 KiB.
    pub small: u64,
    /// Of 2 MiB.
    pub large: u64,
}

/// What memory was when it was taken, bytes: see [`guest_mem::Earned`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "those of `guest_mem::Earned`")]
pub struct Was {
    pub resident: u64,
    pub by_pmd: u64,
    pub as_said: Option<u64>,
}

/// A change of the kernel's mapping, and what listeners made of its announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// When its bracket was opened.
    pub at_ns: u64,
    /// The first page taken.
    pub first_page: u64,
    /// How many pages, from the first.
    pub pages: u64,
    /// The folio's order.
    #[serde(with = "wire::order")]
    pub order: Order,
    /// How the host mapped it.
    #[serde(with = "wire::level")]
    pub level: MapLevel,
    /// Whether the folio is anonymous.
    pub anonymous: bool,
    /// What the pages were taken for.
    pub cause: Cause,
    /// What was announced to listeners with translations of their own, as the policy has it.
    pub told: Ranges,
    /// Calls to listeners that share the host's page tables.
    pub sharing_calls: u64,
    /// Those of them that only repeat one.
    pub double_calls: u64,
    /// What listeners dropped.
    pub zapped: Zapped,
    /// Time in the listeners' zaps.
    pub zap_ns: u64,
    /// Time in the operation, if it was in this bracket.
    pub operation_ns: u64,
    /// Time in the ends.
    pub end_ns: u64,
}

/// What listeners dropped for one announcement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zapped {
    /// Memslots.
    pub slots: u64,
    /// Bytes.
    pub bytes: u64,
    /// Leaf translations; `None` where that is not counted.
    pub leaves: Option<Leaves>,
}

impl From<guest_mem::Earned> for Was {
    fn from(earned: guest_mem::Earned) -> Self {
        Self { resident: earned.resident, by_pmd: earned.by_pmd, as_said: earned.as_said }
    }
}

impl Announcement {
    /// The announcement as the bridge takes it, in memory that begins at `arena`.
    pub fn invalidation(&self, arena: HvaRange) -> Invalidation {
        let start = Hva::new(arena.start().get().wrapping_add(self.first_page.wrapping_mul(PAGE_SIZE)));
        let pages = HvaRange::with_len(start, self.pages.saturating_mul(PAGE_SIZE));
        let pages = pages.unwrap_or(HvaRange::empty(start));
        let victim = Victim { pages, order: self.order, level: self.level, anonymous: self.anonymous };
        Invalidation { cause: self.cause, victim, vma: arena }
    }

    /// From its first call to its last.
    pub fn total_ns(&self) -> u64 {
        self.zap_ns.saturating_add(self.operation_ns).saturating_add(self.end_ns)
    }
}

/// A system call of an operation's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// When it began.
    pub at_ns: u64,
    /// How long it took.
    pub ns: u64,
    /// How far it is known beforehand what the kernel announces.
    pub promise: Promise,
    /// What it is to announce, where that is compared.
    pub expected: Vec<Expected>,
}

/// A range that the kernel is to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The first page.
    pub first_page: u64,
    /// How many pages, from the first.
    pub pages: u64,
    /// What may become of it.
    pub kind: ExpectedKind,
}

/// What may become of an expected range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExpectedKind {
    /// It is announced once.
    Once,
    /// A split: it may be announced again.
    Split,
    /// A folio of several pages is swapped out whole. Where swap has no contiguous room for it, it is split first, and its
    /// pages leave one by one.
    Folio(#[serde(with = "wire::order")] Order),
}

/// A counter that is read around a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Counter {
    /// Remote TLB flushes while memory was taken.
    RemoteTlbFlushes,
    /// Guest faults on pages that had left.
    Refaults,
    /// Guest faults on pages that never left.
    CollateralFaults,
    /// Bytes of swapped pages that were back before they were touched.
    ReturnedBytes,
    /// Stalls that found the guest's ring full.
    LostStalls,
}

/// A touch of the guest's that took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// When it began; `None` where it cannot be put on the host's clock.
    pub at_ns: Option<u64>,
    /// How long it took.
    pub ns: u64,
    /// Which vCPU stood still.
    pub vcpu: u32,
    /// Which page was touched; `None` for memory that is not under test.
    pub page: Option<u64>,
    /// What of.
    pub on: StallOn,
}

/// What a vCPU stood still on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StallOn {
    /// A page that had been taken.
    Taken,
    /// Another page, while memory was taken or looked at.
    Other,
    /// Any page, while nothing was done.
    Undisturbed,
}

/// A range that the kernel announced, by its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRange {
    /// When.
    pub at_ns: u64,
    /// Where it begins, bytes from the beginning of the memory under test: before it, if negative.
    pub start: i64,
    /// How long it is.
    pub bytes: u64,
    /// What the pages were taken for.
    pub cause: By,
    /// The system call that announced it, from 0 in this reclaim step.
    pub call: Option<u32>,
}

impl KernelRange {
    /// Its pages in memory of `pages` pages: the first, and how many.
    pub fn pages(&self, pages: u64) -> Option<(u64, u64)> {
        let end = i128::from(self.start) + i128::from(self.bytes);
        let page = |at: i128| (at.max(0) as u128 / u128::from(PAGE_SIZE)) as u64;
        let (first, end) = (page(self.start.into()), page(end + i128::from(PAGE_SIZE) - 1).min(pages));
        (first < end).then(|| (first, end - first))
    }
}

/// What the device on the host's page tables dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounts {
    /// Cached translations.
    pub entries_dropped: u64,
    /// Calls at which it found nothing to drop.
    pub empty_flushes: u64,
}

/// What a swap in user space brought back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapped {
    /// Faults served.
    pub faults: u64,
    /// Pages that came back from the store.
    pub returned: u64,
    /// Blocks of 2 MiB among them that came back as one huge page.
    pub huge: u64,
    /// Pages that stayed because they were written to on their way out.
    pub kept: u64,
    /// Times a handler was woken.
    pub wakes: u64,
    /// What userfaultfd's events announced.
    pub events: Ranges,
}

/// How fast hot loops get their translations back once all of them are gone: measured after the row, by zapping
/// every memslot under the running loops and looking how many faults they resolve in a while.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refill {
    /// Each time.
    pub rounds: Vec<RefillRound>,
    /// Faults until every loop has come round, each time: those on the guest's own pages are among them.
    pub around: Vec<u64>,
    /// How long each of these took, nanoseconds, from the end of the zap until every loop had been round twice.
    pub around_ns: Vec<u64>,
}

/// All translations went, and the loops had a while to get them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefillRound {
    /// How long it was to be, nanoseconds.
    pub gap_ns: u64,
    /// How long it was, from the end of one zap to the begin of the next.
    pub ns: u64,
    /// Faults resolved from one zap to the next: those count that a vCPU still gets done while it is being stopped.
    pub faults: u64,
}
