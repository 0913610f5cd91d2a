//! From a prediction to a row of a run record.

use notifier_bridge::Cause;

use super::predict::{Prediction, Question, Replay, ReplayError, Running};
use crate::choice::{Combination, Granule, Listener};
use crate::choice::{PolicyChoice, Reclaim, Zap, ZapChoice};
use crate::events::{RowEvents, SecondaryMmu, StepEvent};
use crate::record::{Measured, Row, RowLabel, Warnings};

/// Why times and the like are null.
const NO_CLOCK: &str = "a replay counts; it has no clock, no guest and no kernel";

/// Visits by hot loops that come round after each victim, up to which that is played through: some seconds' work.
const MOST_ROUNDS: u64 = 1 << 26;

/// A predicted row, and what its collateral faults would be at other speeds of the hot loops.
#[derive(Clone, Debug)]
pub struct Predicted {
    /// The row.
    pub row: Row,
    /// Collateral faults if the hot loops never ran between two operations, and if they always came round; `None` where
    /// there are none, or nothing is predicted.
    pub bounds: Option<(u64, u64)>,
    /// How many times as long as they need to come round the hot loops have from one operation to the next; `None` where
    /// the log does not say how fast they are.
    pub slack: Option<f64>,
}

/// How `policy` would have been zapped in this row of a run: as `zap = "auto"` has it.
pub fn question(policy: PolicyChoice, granule: Option<Granule>) -> Question {
    Question { policy, zap: ZapChoice::Auto.under(policy), granule }
}

/// The row as `asked` would have made it. `recorded` is the row that the log is of, from its run's record.
///
/// # Errors
/// [`ReplayError`].
pub fn row(events: &RowEvents, recorded: &Row, asked: Question) -> Result<Predicted, ReplayError> {
    let replay = Replay::new(events, asked.granule)?;
    let found = replay.predict(asked.policy, asked.zap, Running::Recorded);
    let label = RowLabel {
        case: events.header.label.case.clone(),
        tried: Combination {
            policy: asked.policy,
            granule: asked.granule.unwrap_or(events.header.label.tried.granule),
            zap: asked.zap,
            ..events.header.label.tried
        },
        listener: Listener::Replay,
    };
    let mut row = Row::could_not_run(label, "");
    row.could_not_run = None;
    row.trials = 1;
    let mut warnings = Warnings::default();
    fill_counts(&mut row, recorded, (&found, names_addresses(events)), &mut warnings);
    let unknown = unknown_faults(events, asked.zap);
    let bounds = match unknown {
        Some(why) => {
            for key in ["refaults", "collateral_faults", "sptes_zapped_4k", "sptes_zapped_2m"] {
                warnings.note(key, why);
            }
            None
        }
        None => {
            fill_faults(&mut row, &found);
            bounds(&replay, asked, &found, &mut warnings)
        }
    };
    if events.header.lost > 0 {
        let lost = events.header.lost;
        warnings.say(format!("{lost} announcements are not in the log: the counts are of the others"));
    }
    row.warnings = warnings;
    for key in row.unexplained() {
        row.warnings.note(key, NO_CLOCK);
    }
    let slack = (found.needed_ns > 0).then(|| found.had_ns as f64 / found.needed_ns as f64);
    Ok(Predicted { row, bounds, slack })
}

/// Whether every operation of the log was asked for by address: not those of a cgroup, or of a target.
fn names_addresses(events: &RowEvents) -> bool {
    let watches = events.announcements.iter().any(|one| one.cause == Cause::Watch);
    !watches && events.header.label.tried.reclaim != Reclaim::Cgroup
}

fn fill_counts(
    row: &mut Row,
    recorded: &Row,
    (found, names_addresses): (&Prediction, bool),
    warnings: &mut Warnings,
) {
    // What was asked for and what left does not depend on who was told how much.
    row.achieved = recorded.achieved.clone();
    row.victims = recorded.victims;
    row.victim_bytes = recorded.victim_bytes;
    row.evicted_bytes = recorded.evicted_bytes;
    row.needed_bytes = Measured::of(found.needed_bytes);
    if row.label.tried.policy == PolicyChoice::Kernel && !names_addresses {
        // What the kernel announces while it chooses for itself follows from nothing in the log.
        let why = "the kernel's own figure, of which a log without an address tells nothing";
        Row::ANNOUNCED.iter().for_each(|key| warnings.note(key, why));
    } else {
        row.announce(found.invalidations, found.invalidated_bytes, found.needed_bytes, warnings);
    }
    row.sharing_calls = Measured::of(found.sharing_calls);
    row.double_calls = Measured::of(found.double_calls);
    row.slots_zapped = Measured::of(found.zapped.slots);
    row.zapped_bytes = Measured::of(found.zapped.bytes);
}

fn fill_faults(row: &mut Row, found: &Prediction) {
    row.sptes_zapped_4k = Measured::of(found.zapped.dropped.small);
    row.sptes_zapped_2m = Measured::of(found.zapped.dropped.large);
    row.refaults = Measured::of(found.refaults());
    row.collateral_faults = Measured::of(found.collateral_faults());
}

/// What other speeds of the hot loops would have made of the collateral faults.
fn bounds(
    replay: &Replay<'_>,
    asked: Question,
    found: &Prediction,
    warnings: &mut Warnings,
) -> Option<(u64, u64)> {
    let at = |running| replay.predict(asked.policy, asked.zap, running).collateral_faults();
    if !replay.is_hot() {
        return None;
    }
    if replay.rounds_of_all_loops() > MOST_ROUNDS {
        let why = "what other speeds of the hot loop would make of it is not looked for over so many victims";
        warnings.note("collateral_faults", why);
        return None;
    }
    let (never, around) = (at(Running::Never), at(Running::Around));
    let (least, most) = (never.min(around), never.max(around));
    if least != most {
        let known =
            if replay.knows_pace() { "" } else { "; the log does not say how fast it is, so it comes round" };
        warnings.note(
            "collateral_faults",
            format!(
                "{least} if the hot loop stood still from one victim to the next, {most} if it always came round{known}"
            ),
        );
    }
    debug_assert!(replay.knows_pace() || found.collateral_faults() == around);
    Some((least, most))
}

/// Why faults cannot be predicted, if they cannot.
fn unknown_faults(events: &RowEvents, zap: Zap) -> Option<&'static str> {
    let drawn = |step: &StepEvent| matches!(step, StepEvent::Hot { list: None, stride: None, .. });
    match events.header.label.tried.reclaim {
        Reclaim::Uffd => return Some("how pages come back through userfaultfd is not in the model"),
        Reclaim::Cgroup => return Some("the kernel chose for itself, and may choose otherwise"),
        Reclaim::By(_) => {}
    }
    if events.header.mmu == SecondaryMmu::Unknown {
        return Some("the log does not say which secondary MMU translated: /sys did not");
    }
    if events.header.guest == "linux" {
        return Some("a Linux guest touches memory of its own accord, which the log does not have");
    }
    if zap == Zap::Unmap {
        return Some("what the host maps after an unmapping zap is not in the model");
    }
    events
        .header
        .steps
        .iter()
        .any(drawn)
        .then_some("the hot loop draws its pages, and the log does not have them")
}

#[cfg(test)]
mod tests {
    use notifier_bridge::{Cause, Policy};

    use super::*;
    use crate::timeline::fixture;

    /// The prediction of a made-up row, and of what was recorded beside it nothing.
    fn predicted(events: &RowEvents, policy: PolicyChoice) -> Row {
        let mut recorded = Row::could_not_run(events.header.label.clone(), "");
        recorded.could_not_run = None;
        row(events, &recorded, question(policy, None)).unwrap().row
    }

    #[test]
    fn what_sys_did_not_say_is_no_mmu_to_predict_by() {
        let mut events = fixture::row(&[fixture::bracket(0, Cause::PageOut)]);
        let slot = PolicyChoice::Announced(Policy::Slot);
        assert!(predicted(&events, slot).refaults.get().is_some());
        events.header.mmu = SecondaryMmu::Unknown;
        let row = predicted(&events, slot);
        assert_eq!((row.refaults.get(), row.invalidations.get()), (None, Some(1)));
        let why =
            row.warnings.iter().find(|warning| warning.keys.iter().any(|key| key == "refaults")).unwrap();
        assert!(why.text.contains("does not say which secondary MMU"), "{}", why.text);
    }

    #[test]
    fn what_the_kernel_announced_of_its_own_choice_is_not_predicted() {
        let mut events = fixture::row(&[fixture::bracket(0, Cause::CgroupReclaim)]);
        let of = |events: &RowEvents, policy| predicted(events, policy).invalidations.get();
        assert_eq!(of(&events, PolicyChoice::Kernel), Some(1), "by address");
        events.header.label.tried.reclaim = Reclaim::Cgroup;
        assert_eq!(of(&events, PolicyChoice::Kernel), None);
        assert_eq!(of(&events, PolicyChoice::Announced(Policy::Folio)), Some(1));
        let watched = fixture::row(&[fixture::bracket(0, Cause::Watch)]);
        assert_eq!(of(&watched, PolicyChoice::Kernel), None);
        assert_eq!(predicted(&watched, PolicyChoice::Announced(Policy::Folio)).needed_bytes.get(), Some(0));
    }
}
