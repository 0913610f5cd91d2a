//! A row's time, summed up by cause.

use notifier_bridge::Cause;
use serde::Serialize;

use experiment::choice::RowLabel;
use experiment::events::{
    Announcement, Counted, Counter, Event, KernelRange, RowEvents, Stall, StallOn, Step,
};
use notifier_bridge::By;

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
    /// Why, see [`By`].
    pub cause: String,
    /// How many ranges.
    pub ranges: u64,
    /// Pages of all of them.
    pub pages: u64,
}

/// Steps of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// Their length, nanoseconds.
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
    /// The row's label.
    #[serde(flatten)]
    pub label: RowLabel,
    /// By cause, in order of appearance.
    pub causes: Vec<CauseTime>,
    /// The kernel's ranges outside our brackets or of other causes.
    pub others: Vec<OtherRanges>,
    /// The time of the steps, by kind.
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

/// A range's announcement, from its first call to its last.
#[derive(Clone, Copy, Debug)]
struct Bracket {
    begin: u64,
    end: u64,
    cause: usize,
}

/// A step as it was carried out.
#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    step: &'a Step,
    begin: u64,
    end: u64,
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
        let (mut spans, mut brackets, mut known) = (Vec::new(), Vec::new(), Vec::new());
        let mut began = None;
        for event in events {
            match event {
                Event::StepBegan { at_ns, step } => spans.push(Span { step, begin: *at_ns, end: *at_ns }),
                Event::StepEnded { at_ns, counted } => time.end_step(spans.last_mut(), *at_ns, counted),
                Event::OperationBegan(operation) => _ = began.get_or_insert(operation.at_ns),
                Event::Announced(one) => brackets.push(time.add_announcement(one, &mut known)),
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
                Event::Stall(stall) => time.add_stall(stall, began, (&spans, &brackets), &mut held),
                Event::KernelRange(range) if has_account => time.add_range(range, setting.pages(), &brackets),
                _ => {}
            }
        }
        time
    }

    fn add_announcement(&mut self, one: &Announcement, known: &mut Vec<Cause>) -> Bracket {
        let index = known.iter().position(|cause| *cause == one.cause).unwrap_or_else(|| {
            known.push(one.cause);
            let kernel_ranges = self.has_account.then_some(0);
            self.causes.push(CauseTime {
                cause: one.cause.name().to_owned(),
                kernel_ranges,
                ..CauseTime::default()
            });
            known.len() - 1
        });
        let its = &mut self.causes[index];
        its.announcements += 1;
        its.zap_ns = its.zap_ns.saturating_add(one.zap_ns);
        its.operation_ns = its.operation_ns.saturating_add(one.operation_ns);
        its.end_ns = its.end_ns.saturating_add(one.end_ns);
        Bracket { begin: one.at_ns, end: one.at_ns.saturating_add(one.total_ns()), cause: index }
    }

    fn phase(&mut self, step: &Step) -> Option<&mut Phase> {
        match step {
            Step::Reclaim(_) => Some(&mut self.steps.reclaim),
            Step::Refault => Some(&mut self.steps.refault),
            Step::Sweep => Some(&mut self.steps.sweep),
            _ => None,
        }
    }

    fn end_step(&mut self, span: Option<&mut Span<'_>>, at_ns: u64, counted: &Counted) {
        let Some(span) = span else { return };
        span.end = at_ns;
        if let Some(phase) = self.phase(span.step) {
            phase.ns = phase.ns.saturating_add(at_ns.saturating_sub(span.begin));
        }
        // The guest warms its own memory up in the others.
        if !matches!(span.step, Step::Reclaim(_)) {
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
        (spans, brackets): (&[Span<'_>], &[Bracket]),
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
        let step = spans.iter().rev().find(|span| span.begin <= at).map(|span| span.step);
        if let Some(phase) = step.and_then(|step| self.phase(step)).filter(|_| outside > 0) {
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
