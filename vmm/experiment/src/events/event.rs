//! The events of a trial.
//!
//! `first_page` and `pages` are a range of the memory under test, counted from its beginning. `at_ns` is nanoseconds since the
//! trial began, by `CLOCK_MONOTONIC`; any other `_ns` is a length of time.
#![expect(missing_docs, reason = "a field without a doc is what its name says, in the units above")]

use std::collections::BTreeMap;

use guest_mem::{Hva, HvaRange, MapLevel, Order, PAGE_SIZE, PMD_SIZE, Victim};
use notifier_bridge::{By, Cause, GivenBack, Invalidation, Ranges};
use serde::{Deserialize, Serialize};

use super::layout::LayoutRun;
use super::setting::Setting;
use super::wire;

/// An event of a trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A trial begins: the first event of each.
    Trial(Box<Setting>),
    /// A step begins.
    StepBegan { at_ns: u64, step: Step },
    /// The step that began last is over.
    StepEnded {
        at_ns: u64,
        /// Counts of the secondary MMU between the begin and the end of the step.
        counted: Counted,
    },
    /// A reclaim step is about to perform so many operations on so many bytes.
    Asked { victims: u64, bytes: u64 },
    /// An operation begins: what follows up to its end belongs to it.
    OperationBegan(Operation),
    /// The kernel's mapping of some pages is about to change, and listeners are told.
    Announced(Announcement),
    /// A system call of the operation, and the ranges that the kernel is expected to announce for it.
    Called(Called),
    /// The operation that began last is over.
    OperationEnded(OperationEnd),
    /// Touches that all hot loops made in a time.
    Touched {
        /// Whether memory was taken during that time.
        disturbed: bool,
        touches: u64,
        ns: u64,
    },
    /// The difference of a counter between the begin and the end of a span; `None` where this host does not keep it.
    Reading { counter: Counter, count: Option<u64> },
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
    /// Counts of the device that shares the host's page tables.
    Device(DeviceCounts),
    /// Memory that the guest's operating system gave back of its own accord.
    GivenBack(GivenBack),
    /// Counts of the swap in user space.
    Swapped(Swapped),
    /// The guest's own counters at the end.
    GuestCounters(BTreeMap<String, u64>),
    /// Every page was looked at.
    Verified { wrong: u64 },
    /// The speed at which hot loops get their translations back.
    Refill(Refill),
    /// The uncertainty of the guest's times against the host's clock, in either direction.
    Clock { uncertain_ns: u64 },
    /// A warning for the reader of the row.
    Warned(String),
}

/// A step of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Step {
    /// Every page is written.
    Fill,
    /// Hot loops are started.
    Hot(HotLoops),
    /// The loops run undisturbed.
    Baseline,
    /// Memory is taken; the layout is the host's mapping of it before.
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
    pub fn name(&self) -> &'static str {
        self.into()
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

    /// Whether the loops draw their pages at random.
    pub fn draws(&self) -> bool {
        self.list.is_none() && self.stride.is_none()
    }
}

/// Counts of the secondary MMU in a step, where it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Faults that installed a translation, those on the guest's own memory among them.
    pub faults: Option<u64>,
    /// Faults that the secondary MMU gave up, to be tried again.
    pub retries: Option<u64>,
    /// Remote TLB flushes.
    pub flushes: Option<u64>,
}

/// An operation on guest memory, as it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub at_ns: u64,
    /// Touches that the hot loops had made before it.
    pub touches: u64,
    pub first_page: u64,
    pub pages: u64,
}

/// The result of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationEnd {
    pub evicted_bytes: u64,
    /// The ranges that the kernel was expected to announce for it; `None` where it named no address.
    pub expected: Option<Ranges>,
    /// Leaf translations that went, where only the kernel drops them and no listener counts.
    pub dropped: Dropped,
    pub was: Was,
    /// Nanoseconds in its system calls; `None` where it was not by address.
    pub spent_ns: Option<u64>,
    /// Repetitions of its system call, because the kernel had passed over a page in use.
    pub repeated: u32,
}

/// Leaf translations that an operation took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dropped {
    /// Listeners drop and count them.
    #[default]
    ByListeners,
    /// Only the kernel drops them; counted by KVM's statistics.
    ByKernel(Leaves),
    /// Only the kernel drops them, and KVM has no such statistic.
    Unknown,
}

/// Leaf translations by their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaves {
    pub small: u64,
    pub large: u64,
}

/// Bytes of the memory that was taken, by how it was mapped: see [`guest_mem::Earned`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Was {
    pub resident: u64,
    pub by_pmd: u64,
    pub as_said: Option<u64>,
}

/// A change of the kernel's mapping, as it was announced to listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    pub at_ns: u64,
    pub first_page: u64,
    pub pages: u64,
    #[serde(with = "wire::order")]
    pub order: Order,
    #[serde(with = "wire::level")]
    pub level: MapLevel,
    pub anonymous: bool,
    pub cause: Cause,
    /// The ranges announced to listeners with translations of their own, as the policy has them.
    pub ranges: Ranges,
    /// Calls to listeners that share the host's page tables.
    pub sharing_calls: u64,
    /// Those of them that only repeat one.
    pub double_calls: u64,
    pub zapped: Zapped,
    pub zap_ns: u64,
    /// 0 if the system call was not inside this bracket.
    pub operation_ns: u64,
    pub end_ns: u64,
}

/// The translations that listeners dropped for one announcement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zapped {
    pub slots: u64,
    pub bytes: u64,
    /// Leaf translations; `None` where that is not counted.
    pub leaves: Option<Leaves>,
}

impl Leaves {
    /// Bytes that they translate.
    pub fn bytes(self) -> u64 {
        self.small * PAGE_SIZE + self.large * PMD_SIZE
    }
}

impl std::ops::AddAssign for Leaves {
    fn add_assign(&mut self, other: Self) {
        self.small += other.small;
        self.large += other.large;
    }
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

    /// The length of its bracket.
    pub fn total_ns(&self) -> u64 {
        self.zap_ns.saturating_add(self.operation_ns).saturating_add(self.end_ns)
    }
}

/// A system call of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    pub at_ns: u64,
    pub ns: u64,
    pub certainty: Certainty,
    /// Empty where nothing is compared.
    pub expected: Vec<Expected>,
}

/// What is known before a system call of the ranges that the kernel announces for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Certainty {
    /// Exactly the expected ranges; but a folio for which there is no contiguous swap space is split, and leaves page by page.
    Exact,
    /// The expected ranges, and more inside the same 2 MiB blocks: the kernel chooses how it splits the folios at their ends.
    AtLeast,
    /// Nothing: the kernel chooses, or the call was repeated for pages that had stayed. Nothing is compared.
    Unknown,
    /// As [`Certainty::Unknown`], and reclaim makes the choice.
    Reclaim,
}

impl Certainty {
    /// Whether what is announced is compared with what was expected.
    pub const fn is_compared(self) -> bool {
        matches!(self, Self::Exact | Self::AtLeast)
    }
}

/// A range that the kernel is to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    pub first_page: u64,
    pub pages: u64,
    pub kind: ExpectedKind,
}

/// The forms in which an expected range may be announced.
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

/// A touch by the guest that took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// `None` where it cannot be put on the host's clock.
    pub at_ns: Option<u64>,
    pub ns: u64,
    pub vcpu: u32,
    /// `None` for memory that is not under test.
    pub page: Option<u64>,
    pub on: StallOn,
}

/// The memory that a vCPU stood still on, and in which part of the trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StallOn {
    /// A page that had been taken.
    Taken,
    /// Another page, in or after a reclaim step.
    Other,
    /// Any page, in a baseline.
    Undisturbed,
}

/// A range that the kernel announced, by its own account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRange {
    pub at_ns: u64,
    /// Bytes from the beginning of the memory under test; negative for a range that begins before it.
    pub start: i64,
    pub bytes: u64,
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

/// Counts of the device that shares the host's page tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceCounts {
    /// Cached translations that it dropped.
    pub entries_dropped: u64,
    /// Flushes that found nothing to drop.
    pub empty_flushes: u64,
}

/// Counts of the swap in user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swapped {
    pub faults: u64,
    /// Pages that came back from the store.
    pub returned: u64,
    /// Blocks of 2 MiB among them that came back as one huge page.
    pub huge: u64,
    /// Pages that stayed because they were written to on their way out.
    pub kept: u64,
    /// Times a handler was woken.
    pub wakes: u64,
    /// The ranges announced for userfaultfd's events.
    pub events: Ranges,
}

/// The speed at which hot loops get their translations back once all of them are gone: measured after the row, by zapping
/// every memslot under the running loops and counting the faults they resolve in a given time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refill {
    pub rounds: Vec<RefillRound>,
    /// Faults until every loop has come round, those on the guest's own pages among them.
    pub around: Vec<u64>,
    /// The time of each of these, from the end of the zap until every loop had been round twice.
    pub around_ns: Vec<u64>,
}

/// The time from one zap of all translations to the next, in which the loops get some of them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefillRound {
    /// The length that was wanted.
    pub gap_ns: u64,
    /// The length from the end of one zap to the begin of the next.
    pub ns: u64,
    /// Faults resolved from one zap to the next, those of a vCPU that is being stopped among them.
    pub faults: u64,
}
