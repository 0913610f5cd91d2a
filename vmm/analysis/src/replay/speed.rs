//! The speed of a row's hot loops, from its events.
//!
//! ```text
//!   undisturbed     touches and their time ──────────────────────> a touch
//!   refill.rounds   faults in a short gap, and in a long one ────> a fault, and what goes before the first
//!   refill.around   faults until all have come round, and when ──> a fault at most: all that is known where the loops
//!                                                                  come round in the short gap already
//! ```

use super::machine::Pace;
use experiment::events::{Event, HotLoops, Refill, RowEvents, Step};

/// The events of a row's hot loops in its first trial, found in one pass: a row may have millions of others.
#[derive(Debug, Default)]
pub(super) struct Hot<'a> {
    /// The number of events of that trial.
    pub events: usize,
    /// The loops of all steps.
    pub loops: Vec<&'a HotLoops>,
    /// Whether one runs while memory is taken.
    pub while_taken: bool,
    /// The number of operations that take it.
    pub operations: u64,
    /// The speed at which the loops get their translations back, where it was measured.
    pub refill: Option<&'a Refill>,
    /// Touches by all loops while nothing was done to them, and their nanoseconds.
    undisturbed: (u64, u64),
    /// The pages of the memory under test.
    pages: u64,
}

impl<'a> Hot<'a> {
    pub fn of(row: &'a RowEvents, pages: u64) -> Self {
        let (mut hot, mut runs) = (Self { events: row.events.len(), pages, ..Self::default() }, false);
        for (index, event) in row.events.iter().enumerate().skip(1) {
            match event {
                Event::Trial(_) => {
                    hot.events = index;
                    break;
                }
                Event::StepBegan { step: Step::Hot(loops), .. } => {
                    hot.loops.push(loops);
                    runs = true;
                }
                Event::StepBegan { step: Step::Stop, .. } => runs = false,
                Event::StepBegan { step: Step::Reclaim(_), .. } => hot.while_taken |= runs,
                Event::OperationBegan(_) => hot.operations += 1,
                Event::Refill(refill) => hot.refill = Some(refill),
                Event::Touched { disturbed: false, touches, ns } => {
                    let (all, time) = &mut hot.undisturbed;
                    (*all, *time) = (all.saturating_add(*touches), time.saturating_add(*ns));
                }
                _ => {}
            }
        }
        hot
    }

    /// Nanoseconds that a loop takes for a touch while nothing is done to it, where that was measured.
    fn touch_ns(&self) -> Option<f64> {
        let (touches, ns) = self.undisturbed;
        (touches > 0 && ns > 0).then(|| ns as f64 * self.count() as f64 / touches as f64)
    }

    /// Whether the log says how fast the hot loops are.
    pub fn knows_pace(&self) -> bool {
        self.pace().is_some()
    }

    /// The number of loops of all steps.
    fn count(&self) -> u64 {
        self.loops.iter().map(|hot| u64::from(hot.loops)).fold(0, u64::saturating_add).max(1)
    }

    /// The speed, where the log has it.
    pub fn pace(&self) -> Option<Pace> {
        let touch = self.touch_ns()?;
        let (slope, _) = self.fault_times()?;
        Some(Pace { touch, fault: slope * self.count() as f64 })
    }

    /// The time from a zap with stopped vCPUs to the first fault.
    pub fn entering(&self) -> Option<f64> {
        self.fault_times().map(|(_, entering)| entering)
    }

    /// Nanoseconds a fault, and before the first: by the line through the medians of the two gaps, unless coming round
    /// says that a fault costs less.
    fn fault_times(&self) -> Option<(f64, f64)> {
        let line = self.by_gaps();
        match (line, self.by_rounds()) {
            (Some((slope, _)), Some(most)) if most < slope => Some((most, 0.0)),
            (None, Some(most)) => Some((most, 0.0)),
            (line, _) => line,
        }
    }

    /// By the line through the medians of the two gaps. What goes before the first is below 0 where vCPUs get more done
    /// while they are stopped than they lose when they are let in. `None` where both gaps say the same: then the loops come
    /// round in the shorter one.
    fn by_gaps(&self) -> Option<(f64, f64)> {
        let rounds = &self.refill?.rounds;
        let gaps = rounds.iter().map(|round| round.gap_ns);
        let point = |gap_ns: u64| -> Option<(f64, f64)> {
            let of_gap = || rounds.iter().filter(|round| round.gap_ns == gap_ns);
            let ns = median(of_gap().map(|round| round.ns).collect())?;
            Some((ns as f64, median(of_gap().map(|round| round.faults).collect())? as f64))
        };
        let ((short, few), (long, many)) = (point(gaps.clone().min()?)?, point(gaps.max()?)?);
        let slope = (long - short) / (many - few);
        (slope.is_finite() && slope > 0.0).then_some((slope, short - few * slope))
    }

    /// The most that a fault costs: the quickest time in which the loops came round, less what their touches take, over the
    /// faults that it took.
    fn by_rounds(&self) -> Option<f64> {
        let refill = self.refill?;
        // Each loop goes round twice, and all of them at the same time.
        let touching = 2.0 * self.most_visits() as f64 * self.touch_ns()?;
        let rounds = refill.around_ns.iter().zip(&refill.around).filter(|(_, faults)| **faults > 0);
        let each = rounds.map(|(&ns, &faults)| ((ns as f64 - touching) / faults as f64).max(1.0));
        each.min_by(f64::total_cmp)
    }

    /// Visits in a pass of the longest loop.
    fn most_visits(&self) -> u64 {
        self.loops.iter().map(|hot| hot.visits(self.pages)).max().unwrap_or(0)
    }

    /// Visits that all loops make if they come round after every operation.
    pub fn rounds(&self) -> u64 {
        let visits = |hot: &HotLoops| hot.visits(self.pages).saturating_mul(u64::from(hot.loops));
        let all = self.loops.iter().copied().map(visits).fold(0, u64::saturating_add);
        all.saturating_mul(self.operations)
    }
}

/// The one in the middle.
pub(super) fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
