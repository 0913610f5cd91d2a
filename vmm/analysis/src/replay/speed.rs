//! The speed of a row's hot loops, from its events.
//!
//! ```text
//!   undisturbed     touches and their time ──────────────────────> a touch
//!   refill.rounds   faults in a short gap, and in a long one ────> a fault, and what goes before the first
//!   refill.around   faults until all have come round, and when ──> a fault at most: all that is known where the loops
//!                                                                  come round in the short gap already
//! ```

use super::machine::Pace;
use super::predict::{Replay, median};
use experiment::events::{Event, HotLoops, Refill, Step};

/// The events of a row's hot loops, found in one pass: a row may have millions of others.
#[derive(Debug, Default)]
pub(super) struct Hot<'a> {
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
}

impl<'a> Hot<'a> {
    pub fn of(events: &'a [Event]) -> Self {
        let (mut hot, mut runs) = (Self::default(), false);
        for event in events {
            match event {
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

    /// Touches while nothing was done to the loops, and their nanoseconds; `None` where neither was measured.
    fn undisturbed(&self) -> Option<(u64, u64)> {
        Some(self.undisturbed).filter(|(touches, ns)| *touches > 0 && *ns > 0)
    }
}

impl Replay<'_> {
    /// Whether the log says how fast the hot loops are.
    pub fn knows_pace(&self) -> bool {
        self.pace().is_some()
    }

    fn loops(&self) -> u64 {
        self.hot.loops.iter().map(|hot| u64::from(hot.loops)).fold(0, u64::saturating_add).max(1)
    }

    pub(super) fn pace(&self) -> Option<Pace> {
        let (touches, ns) = self.hot.undisturbed()?;
        let touch = ns as f64 * self.loops() as f64 / touches as f64;
        let (slope, _) = self.fault_times()?;
        Some(Pace { touch, fault: slope * self.loops() as f64 })
    }

    /// The time from a zap with stopped vCPUs to the first fault.
    pub(super) fn entering(&self) -> Option<f64> {
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
        let rounds = &self.hot.refill?.rounds;
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
        let (touches, ns) = self.hot.undisturbed()?;
        let refill = self.hot.refill?;
        // Each loop goes round twice, and all of them at the same time.
        let touch = ns as f64 * self.loops() as f64 / touches as f64;
        let touching = 2.0 * self.most_visits() as f64 * touch;
        let rounds = refill.around_ns.iter().zip(&refill.around).filter(|(_, faults)| **faults > 0);
        let each = rounds.map(|(&ns, &faults)| ((ns as f64 - touching) / faults as f64).max(1.0));
        each.min_by(f64::total_cmp)
    }

    /// Visits in a pass of the longest loop.
    fn most_visits(&self) -> u64 {
        self.hot.loops.iter().map(|hot| hot.visits(self.setting.pages())).max().unwrap_or(0)
    }
}
