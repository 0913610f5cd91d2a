//! A row's time, summed up by cause.
//!
//! A bracket is the announcement of a range by us, from its first call to its last. Times are nanoseconds.
#![expect(missing_docs, reason = "a field without a doc is what its name says")]

use notifier_bridge::By;
use serde::Serialize;

use experiment::choice::RowLabel;
use experiment::events::{
    Announcement, Counted, Counter, Event, KernelRange, RowEvents, Stall, StallOn, Step,
};

/// The time that one cause took, of the host and of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CauseTime {
    /// The name of a [`notifier_bridge::Cause`].
    pub cause: String,
    /// Ranges announced by us; under policy `kernel`, where only the kernel announces, ranges expected of it.
    pub announcements: u64,
    /// Ranges announced by the kernel inside our brackets; `None` where its account was not kept.
    pub kernel_ranges: Option<u64>,
    /// In our listeners' zaps.
    pub zap_ns: u64,
    /// Between them and the ends: in the kernel's calls, and where a page-out is asked for again, in looking what left
    /// and waiting.
    pub operation_ns: u64,
    /// In the ends of the brackets.
    pub end_ns: u64,
    /// Stalls of vCPUs inside these brackets.
    pub held: Stalled,
}

/// Stalls of vCPUs, and their length summed over the vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stalled {
    pub stalls: u64,
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
    /// The name of a [`By`].
    pub cause: String,
    pub ranges: u64,
    pub pages: u64,
}

/// Steps of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phase {
    pub ns: u64,
    /// The stalls of vCPUs in them, outside our brackets.
    pub stalled: Stalled,
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
    #[serde(flatten)]
    pub label: RowLabel,
    /// By cause, in order of appearance.
    pub causes: Vec<CauseTime>,
    /// The kernel's ranges outside our brackets or of other causes.
    pub others: Vec<OtherRanges>,
    pub steps: Steps,
    /// Counts of the secondary MMU while memory was taken.
    pub counted: Counted,
    /// Whether the kernel's account was kept.
    pub has_account: bool,
    /// Stalls that are not among these: they found no room, or could not be put on the host's clock.
    pub stalls_left_out: u64,
    /// By how much the guest's times may be off against the host's, either way.
    pub clock_uncertain_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bracket {
    begin: u64,
    end: u64,
    /// The place of its cause in [`RowTime::causes`].
    cause: usize,
}

impl RowTime {
    /// Sums the first trial of a row up.
    pub fn of(row: &RowEvents) -> Self {
        let (setting, events) = (row.setting(), row.first_trial());
        let of_account = |event: &Event| match event {
            Event::KernelSpan { .. } => Some(true),
            Event::NoAccount(_) => Some(false),
            _ => None,
        };
        // The last event about it counts: an account may come to an end.
        let has_account = row.events.iter().rev().find_map(of_account).unwrap_or(false);
        let mut time = Self {
            label: setting.label.clone(),
            causes: Vec::new(),
            others: Vec::new(),
            steps: Steps::default(),
            counted: Counted::default(),
            has_account,
            stalls_left_out: 0,
            clock_uncertain_ns: 0,
        };
        let (mut steps, mut brackets) = (Vec::new(), Vec::new());
        let mut began = None;
        for event in events {
            match event {
                Event::StepBegan { at_ns, step } => steps.push((*at_ns, step)),
                Event::StepEnded { at_ns, counted } => time.end_step(steps.last(), *at_ns, counted),
                Event::OperationBegan(operation) => _ = began.get_or_insert(operation.at_ns),
                Event::Announced(one) => brackets.push(time.add_announcement(one)),
                Event::Clock { uncertain_ns } => time.clock_uncertain_ns = *uncertain_ns,
                Event::Reading { counter: Counter::LostStalls, count } => {
                    time.stalls_left_out = time.stalls_left_out.saturating_add(count.unwrap_or(0));
                }
                _ => {}
            }
        }
        let mut held = vec![0; time.causes.len()];
        for event in events {
            match event {
                Event::Stall(stall) => time.add_stall(stall, began, (&steps, &brackets), &mut held),
                Event::KernelRange(range) if has_account => time.add_range(range, setting.pages(), &brackets),
                _ => {}
            }
        }
        time
    }

    fn add_announcement(&mut self, one: &Announcement) -> Bracket {
        let name = one.cause.name();
        let cause = self.causes.iter().position(|known| known.cause == name).unwrap_or_else(|| {
            let kernel_ranges = self.has_account.then_some(0);
            self.causes.push(CauseTime { cause: name.to_owned(), kernel_ranges, ..CauseTime::default() });
            self.causes.len() - 1
        });
        let its = &mut self.causes[cause];
        its.announcements += 1;
        its.zap_ns = its.zap_ns.saturating_add(one.zap_ns);
        its.operation_ns = its.operation_ns.saturating_add(one.operation_ns);
        its.end_ns = its.end_ns.saturating_add(one.end_ns);
        Bracket { begin: one.at_ns, end: one.at_ns.saturating_add(one.total_ns()), cause }
    }

    fn phase(&mut self, step: &Step) -> Option<&mut Phase> {
        match step {
            Step::Reclaim(_) => Some(&mut self.steps.reclaim),
            Step::Refault => Some(&mut self.steps.refault),
            Step::Sweep => Some(&mut self.steps.sweep),
            _ => None,
        }
    }

    fn end_step(&mut self, begun: Option<&(u64, &Step)>, at_ns: u64, counted: &Counted) {
        let Some((begun_ns, step)) = begun else { return };
        if let Some(phase) = self.phase(step) {
            phase.ns = phase.ns.saturating_add(at_ns.saturating_sub(*begun_ns));
        }
        // The guest warms its own memory up in the others.
        if !matches!(step, Step::Reclaim(_)) {
            return;
        }
        let sums = &mut self.counted;
        for (sum, more) in [
            (&mut sums.faults, counted.faults),
            (&mut sums.retries, counted.retries),
            (&mut sums.flushes, counted.flushes),
        ] {
            *sum = more.map(|more| sum.unwrap_or(0).saturating_add(more)).or(*sum);
        }
    }

    /// The part of a stall inside brackets is held by their causes; the rest belongs to the step in which it began.
    /// `held` is zeros, one for each cause, and is left so. One that began before the first operation is none of its doing.
    fn add_stall(
        &mut self,
        stall: &Stall,
        began: Option<u64>,
        (steps, brackets): (&[(u64, &Step)], &[Bracket]),
        held: &mut [u64],
    ) {
        if stall.on == StallOn::Undisturbed {
            return;
        }
        let Some(at) = stall.at_ns else {
            self.stalls_left_out += 1;
            return;
        };
        if began.is_some_and(|began| at < began) {
            return;
        }
        let ended = at.saturating_add(stall.ns);
        let first = brackets.partition_point(|bracket| bracket.end <= at);
        let mut inside = 0u64;
        for bracket in brackets[first..].iter().take_while(|bracket| bracket.begin < ended) {
            let part = ended.min(bracket.end).saturating_sub(at.max(bracket.begin));
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
        // Steps are in order of time, and few.
        let step = steps.iter().rev().find(|(began, _)| *began <= at);
        if let Some(phase) = step.and_then(|(_, step)| self.phase(step)).filter(|_| outside > 0) {
            phase.stalled.add(outside);
        }
    }

    fn add_range(&mut self, range: &KernelRange, arena_pages: u64, brackets: &[Bracket]) {
        let Some((_, pages)) = range.pages(arena_pages) else { return };
        let at = brackets.partition_point(|bracket| bracket.end < range.at_ns);
        let bracket = brackets.get(at).filter(|bracket| bracket.begin <= range.at_ns);
        if let (By::Step, Some(bracket)) = (range.cause, bracket) {
            *self.causes[bracket.cause].kernel_ranges.get_or_insert(0) += 1;
            return;
        }
        let name = range.cause.name();
        let known = self.others.iter().position(|other| other.cause == name).unwrap_or_else(|| {
            self.others.push(OtherRanges { cause: name.to_owned(), ranges: 0, pages: 0 });
            self.others.len() - 1
        });
        let other = &mut self.others[known];
        other.ranges += 1;
        other.pages = other.pages.saturating_add(pages);
    }
}

#[cfg(test)]
mod tests;
