//! Writing a section's body, as the trial goes along.

use guest_mem::{MapLevel, PageRun};
use notifier_bridge::Cause;

use super::header::{StepEvent, StepTime};
use super::layout::LayoutRun;
use super::varint::{put, put_difference};
use super::{Announcement, OperationEvent, RangeEvent, StallEvent};
use crate::tap::RangeCause;

/// What a trial leaves for the log.
#[derive(Clone, Debug, Default)]
pub struct TrialEvents {
    /// What happened, in order.
    pub steps: Vec<StepEvent>,
    /// When each of them was carried out.
    pub step_times: Vec<StepTime>,
    /// When the first operation began.
    pub began_ns: u64,
    /// The body, in its parts.
    pub body: BodyWriter,
    /// Announcements that found the notebook full.
    pub lost: u64,
    /// Stalls that did, or that could not be put on the host's clock.
    pub stalls_left_out: u64,
    /// By how much the others' times may be off.
    pub clock_uncertain_ns: u64,
    /// Ranges of the kernel's that found the notebook full; `None` if nobody kept its account.
    pub ranges_left_out: Option<u64>,
}

/// Writes the parts of a body side by side: they are known in another order than they stand in.
#[derive(Clone, Debug, Default)]
pub struct BodyWriter {
    lists: Vec<u8>,
    layouts: Vec<u8>,
    operations: Vec<u8>,
    stalls: Vec<u8>,
    ranges: Vec<u8>,
    counts: [u32; 5],
    causes: Vec<Cause>,
    range_causes: Vec<RangeCause>,
    last_began_ns: u64,
    last_page: u64,
    last_stall_ns: u64,
    last_range_ns: u64,
    last_range_page: u64,
}

/// The number of `cause` among `known`, to which it is added if it is new.
fn number_of<C: PartialEq>(known: &mut Vec<C>, cause: C) -> u64 {
    let place = known.iter().position(|one| *one == cause).unwrap_or(known.len());
    if place == known.len() {
        known.push(cause);
    }
    place as u64
}

impl BodyWriter {
    /// Adds a list of pages and returns its number.
    pub fn list(&mut self, pages: impl ExactSizeIterator<Item = u64>) -> u32 {
        put(&mut self.lists, pages.len() as u64);
        let mut before = 0;
        for page in pages {
            put_difference(&mut self.lists, page, before);
            before = page;
        }
        self.counts[0] += 1;
        self.counts[0] - 1
    }

    /// Adds a layout and returns its number.
    pub fn layout(&mut self, runs: &[PageRun]) -> u32 {
        put(&mut self.layouts, runs.len() as u64);
        for run in runs.iter().map(LayoutRun::from) {
            put(&mut self.layouts, run.pages);
            put(&mut self.layouts, run.state as u64);
        }
        self.counts[1] += 1;
        self.counts[1] - 1
    }

    /// Adds an operation with what it announced; its own `announcements` is taken from there.
    pub fn operation(
        &mut self,
        event: &OperationEvent,
        announced: impl ExactSizeIterator<Item = Announcement>,
    ) {
        let out = &mut self.operations;
        put(out, event.began_ns.saturating_sub(self.last_began_ns));
        self.last_began_ns = event.began_ns.max(self.last_began_ns);
        for number in [event.touches, event.first_page, event.pages, event.evicted, announced.len() as u64] {
            put(out, number);
        }
        for one in announced {
            put_difference(out, one.first_page, self.last_page);
            self.last_page = one.first_page;
            let by_pmd = u64::from(one.level == MapLevel::Pmd);
            let flags = by_pmd | u64::from(one.anonymous) << 1 | u64::from(one.order.get()) << 2;
            let cause = number_of(&mut self.causes, one.cause);
            let times = [one.began_ns, one.zap_ns, one.operation_ns, one.end_ns];
            for number in [one.pages, flags, cause].into_iter().chain(times) {
                put(out, number);
            }
        }
        self.counts[2] += 1;
    }

    /// Adds a stall, which began no earlier than the one before.
    pub fn stall(&mut self, event: &StallEvent) {
        let since = event.began_ns.saturating_sub(self.last_stall_ns);
        self.last_stall_ns += since;
        for number in [since, event.ns, event.vcpu.into(), event.page.map_or(0, |page| page + 1)] {
            put(&mut self.stalls, number);
        }
        self.counts[3] += 1;
    }

    /// Adds a range of the kernel's, which was announced no earlier than the one before.
    pub fn range(&mut self, event: &RangeEvent) {
        let since = event.at_ns.saturating_sub(self.last_range_ns);
        self.last_range_ns += since;
        put(&mut self.ranges, since);
        put_difference(&mut self.ranges, event.first_page, self.last_range_page);
        self.last_range_page = event.first_page;
        put(&mut self.ranges, event.pages);
        let cause = number_of(&mut self.range_causes, event.cause);
        put(&mut self.ranges, cause);
        self.counts[4] += 1;
    }

    /// Lists, layouts, operations, stalls and ranges so far.
    pub fn counts(&self) -> [u32; 5] {
        self.counts
    }
    /// The causes that announcements have by number.
    pub fn causes(&self) -> &[Cause] {
        &self.causes
    }
    /// The causes that ranges have by number.
    pub fn range_causes(&self) -> &[RangeCause] {
        &self.range_causes
    }
    /// The parts, in the order of the file.
    pub(super) fn parts(&self) -> [&[u8]; 5] {
        [&self.lists, &self.layouts, &self.operations, &self.stalls, &self.ranges]
    }
}
