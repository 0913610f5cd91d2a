//! A row's time, summed up by cause.

use notifier_bridge::Cause;
use serde::Serialize;

use crate::events::{Announcement, RowEvents, StallEvent, StepEvent};
use crate::record::RowLabel;
use crate::tap::RangeCause;

/// What one cause took, host and guest. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CauseTime {
    /// Why memory was taken.
    pub cause: String,
    /// Ranges announced by us; under policy `kernel`, where nobody but the kernel announces, ranges expected of it.
    pub announcements: u64,
    /// Ranges announced by the kernel inside our brackets; `None` where nobody kept its account.
    pub kernel_ranges: Option<u64>,
    /// In our listeners' zaps.
    pub zap_ns: u64,
    /// Between them and the ends: in the kernel's calls, and where a page-out is asked for again, in looking what left
    /// and waiting.
    pub operation_ns: u64,
    /// In the ends of the brackets.
    pub end_ns: u64,
    /// That vCPUs stood still inside these brackets, summed over them.
    pub held: Stalled,
}

/// How often and how long vCPUs stood still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stalled {
    /// How many stalls.
    pub stalls: u64,
    /// How long together, nanoseconds.
    pub ns: u64,
}

impl Stalled {
    fn add(&mut self, ns: u64) {
        self.stalls += 1;
        self.ns = self.ns.saturating_add(ns);
    }
}

/// Ranges that the kernel announced while we had no bracket open, or for another reason than ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherRanges {
    /// Why, see [`RangeCause`].
    pub cause: String,
    /// How many ranges.
    pub ranges: u64,
    /// Pages of all of them.
    pub pages: u64,
}

/// Steps of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// How long they took, nanoseconds.
    pub ns: u64,
    /// Where vCPUs stood still in them, outside our brackets.
    pub stalled: Stalled,
}

/// What the secondary MMU counted while memory was taken, where it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Faults that installed a translation.
    pub faults: Option<u64>,
    /// Faults after which the guest was let in again without one.
    pub retries: Option<u64>,
    /// Remote TLB flushes.
    pub flushes: Option<u64>,
}

/// The steps of a row, summed up by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// While memory was taken, until the kernel's account of it was read.
    pub reclaim: Phase,
    /// While every page taken was read again.
    pub refault: Phase,
    /// While every other page was.
    pub sweep: Phase,
}

/// A row's time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowTime {
    /// What was tried.
    #[serde(flatten)]
    pub label: RowLabel,
    /// By cause, in order of appearance.
    pub causes: Vec<CauseTime>,
    /// What the kernel announced beside.
    pub others: Vec<OtherRanges>,
    /// What the steps came to, by kind.
    pub steps: Steps,
    /// What the secondary MMU did meanwhile.
    pub counted: Counted,
    /// Announcements that are not among these: they found no room.
    pub announcements_left_out: u64,
    /// Ranges of the kernel's that are not among these, for the same reason; `None` where nobody kept its account.
    pub ranges_left_out: Option<u64>,
    /// Stalls that are not among these: they found no room, or could not be put on the host's clock.
    pub stalls_left_out: u64,
    /// By how much the guest's times may be off against the host's, either way.
    pub clock_uncertain_ns: u64,
}

/// A range's announcement, from its first call to its last.
#[derive(Clone, Copy, Debug)]
struct Bracket {
    begin: u64,
    end: u64,
    cause: usize,
}

impl RowTime {
    /// Sums a row up.
    pub fn of(row: &RowEvents) -> Self {
        let header = &row.header;
        let kept = header.ranges_left_out.is_some();
        let mut causes: Vec<(Cause, CauseTime)> = Vec::new();
        let mut brackets = Vec::with_capacity(row.announcements.len());
        for (began, one) in row.brackets() {
            let index = causes.iter().position(|(cause, _)| *cause == one.cause).unwrap_or_else(|| {
                let named = CauseTime { cause: one.cause.name().to_owned(), ..CauseTime::default() };
                causes.push((one.cause, CauseTime { kernel_ranges: kept.then_some(0), ..named }));
                causes.len() - 1
            });
            let its = &mut causes[index].1;
            its.announcements += 1;
            its.zap_ns = its.zap_ns.saturating_add(one.zap_ns);
            its.operation_ns = its.operation_ns.saturating_add(one.operation_ns);
            its.end_ns = its.end_ns.saturating_add(one.end_ns);
            brackets.push(Bracket { begin: began, end: began.saturating_add(one.total_ns()), cause: index });
        }
        let mut time = Self {
            label: header.label.clone(),
            causes: causes.into_iter().map(|(_, time)| time).collect(),
            others: Vec::new(),
            steps: Steps::default(),
            counted: Counted::default(),
            announcements_left_out: header.lost,
            ranges_left_out: header.ranges_left_out,
            stalls_left_out: header.stalls_left_out,
            clock_uncertain_ns: header.clock_uncertain_ns,
        };
        time.add_steps(row);
        let mut held = vec![0; time.causes.len()];
        row.stalls.iter().for_each(|stall| time.add_stall(row, &brackets, stall, &mut held));
        time.add_ranges(row, &brackets);
        time
    }

    fn phase(&mut self, step: &StepEvent) -> Option<&mut Phase> {
        match step {
            StepEvent::Reclaim { .. } => Some(&mut self.steps.reclaim),
            StepEvent::Refault => Some(&mut self.steps.refault),
            StepEvent::Sweep => Some(&mut self.steps.sweep),
            _ => None,
        }
    }

    fn add_steps(&mut self, row: &RowEvents) {
        for (step, time) in row.header.steps.iter().zip(&row.header.step_times) {
            let Some(phase) = self.phase(step) else { continue };
            phase.ns = phase.ns.saturating_add(time.ended_ns.saturating_sub(time.began_ns).max(0) as u64);
            // The guest warms its own memory up in the others.
            if !matches!(step, StepEvent::Reclaim { .. }) {
                continue;
            }
            let counted = &mut self.counted;
            for (sum, more) in [
                (&mut counted.faults, time.faults),
                (&mut counted.retries, time.retries),
                (&mut counted.flushes, time.flushes),
            ] {
                *sum = more.map(|more| sum.unwrap_or(0).saturating_add(more)).or(*sum);
            }
        }
    }

    /// The part of a stall inside brackets is held by their causes; the rest belongs to the step in which it began.
    /// `held` is zeros, one for each cause, and is left so.
    fn add_stall(&mut self, row: &RowEvents, brackets: &[Bracket], stall: &StallEvent, held: &mut [u64]) {
        let ended = stall.began_ns.saturating_add(stall.ns);
        let first = brackets.partition_point(|bracket| bracket.end <= stall.began_ns);
        let mut inside = 0u64;
        for bracket in brackets[first..].iter().take_while(|bracket| bracket.begin < ended) {
            let part = ended.min(bracket.end).saturating_sub(stall.began_ns.max(bracket.begin));
            held[bracket.cause] = part.saturating_add(held[bracket.cause]);
            inside = inside.saturating_add(part);
        }
        for (cause, held) in self.causes.iter_mut().zip(held) {
            match std::mem::take(held) {
                0 => {}
                ns => cause.held.add(ns),
            }
        }
        let outside = stall.ns.saturating_sub(inside);
        let times = row.header.steps.iter().zip(&row.header.step_times);
        // Steps are in order of time, and few.
        let step = times.rev().find(|(_, time)| time.began_ns <= stall.began_ns as i64).map(|(step, _)| step);
        if let Some(phase) = step.and_then(|step| self.phase(step)).filter(|_| outside > 0) {
            phase.stalled.add(outside);
        }
    }

    fn add_ranges(&mut self, row: &RowEvents, brackets: &[Bracket]) {
        for range in &row.ranges {
            let at = brackets.partition_point(|bracket| bracket.end < range.at_ns);
            let bracket = brackets.get(at).filter(|bracket| bracket.begin <= range.at_ns);
            if let (RangeCause::Step, Some(bracket)) = (range.cause, bracket) {
                *self.causes[bracket.cause].kernel_ranges.get_or_insert(0) += 1;
                continue;
            }
            let name = range.cause.name();
            let known = self.others.iter().position(|other| other.cause == name).unwrap_or_else(|| {
                self.others.push(OtherRanges { cause: name.to_owned(), ranges: 0, pages: 0 });
                self.others.len() - 1
            });
            self.others[known].ranges += 1;
            let pages = &mut self.others[known].pages;
            *pages = pages.saturating_add(range.pages);
        }
    }
}

impl Announcement {
    /// From its first call to its last.
    pub fn total_ns(&self) -> u64 {
        self.zap_ns.saturating_add(self.operation_ns).saturating_add(self.end_ns)
    }
}

impl RowEvents {
    /// Each announcement, with when its bracket was opened: nanoseconds since the row's first operation.
    pub fn brackets(&self) -> impl Iterator<Item = (u64, &Announcement)> {
        let mut rest = self.announcements.as_slice();
        self.operations.iter().flat_map(move |operation| {
            let (its, others) = rest.split_at((operation.announcements as usize).min(rest.len()));
            rest = others;
            its.iter().map(|one| (operation.began_ns.saturating_add(one.began_ns), one))
        })
    }
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
