//! From a prediction to a row of a run record.

use super::predict::{Replay, ReplayError, Running};
use experiment::choice::{Granule, PolicyChoice, Zap, ZapChoice};
use experiment::events::RowEvents;
use experiment::record::{Row, Warnings};

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
    /// The time that hot loops have from one operation to the next over the time they need to come round; `None` where the log
    /// does not have their speed.
    pub slack: Option<f64>,
}

/// The row under `policy`, zapped as `zap = "auto"` has it, with memslots of another size if `granule` says so.
pub fn row(
    events: &RowEvents,
    policy: PolicyChoice,
    granule: Option<Granule>,
) -> Result<Predicted, ReplayError> {
    let zap = ZapChoice::Auto.under(policy);
    let replay = Replay::new(events, granule)?;
    let found = replay.predict(policy, zap, Running::Recorded);
    let (had, needed, collateral) = (found.had_ns, found.needed_ns, found.collateral_faults());
    let unknown = replay.unknown_faults(zap);
    let mut row = found.fold.row_because(|key| {
        let of_model = ["refaults", "collateral_faults", "sptes_zapped_4k", "sptes_zapped_2m"].contains(&key);
        unknown.filter(|_| of_model).map(str::to_owned)
    });
    let bounds = match unknown {
        Some(_) => None,
        None => bounds(&replay, policy, zap, collateral, &mut row.warnings),
    };
    let slack = (needed > 0).then(|| had as f64 / needed as f64);
    Ok(Predicted { row, bounds, slack })
}

/// The collateral faults at other speeds of the hot loops.
fn bounds(
    replay: &Replay<'_>,
    policy: PolicyChoice,
    zap: Zap,
    found: u64,
    warnings: &mut Warnings,
) -> Option<(u64, u64)> {
    let at = |running| replay.predict(policy, zap, running).collateral_faults();
    if !replay.hot.while_taken {
        return None;
    }
    if replay.hot.rounds() > MOST_ROUNDS {
        let why = "what other speeds of the hot loop would make of it is not looked for over so many victims";
        warnings.note("collateral_faults", why);
        return None;
    }
    let (never, around) = (at(Running::Never), at(Running::Around));
    let (least, most) = (never.min(around), never.max(around));
    if least != most {
        let known = if replay.hot.knows_pace() {
            ""
        } else {
            "; the log does not say how fast it is, so it comes round"
        };
        warnings.note(
            "collateral_faults",
            format!(
                "{least} if the hot loop stood still from one victim to the next, {most} if it always came round{known}"
            ),
        );
    }
    debug_assert!(replay.hot.knows_pace() || found == around);
    Some((least, most))
}

#[cfg(test)]
mod tests {
    use notifier_bridge::{Cause, Policy};

    use super::*;
    use experiment::choice::Reclaim;
    use experiment::events::fixture;
    use experiment::events::{Event, SecondaryMmu, Setting};

    fn predicted(events: &RowEvents, policy: PolicyChoice) -> Row {
        row(events, policy, None).unwrap().row
    }

    /// A row of one operation, whose setting is so, and which named an address or not.
    fn made(cause: Cause, set: impl FnOnce(&mut Setting), by_address: bool) -> RowEvents {
        let mut row = fixture::row(vec![fixture::bracket(0, cause)]);
        for event in &mut row.events {
            if let Event::OperationEnded(end) = event {
                end.expected = end.expected.filter(|_| by_address);
            }
        }
        if let Some(Event::Trial(setting)) = row.events.first_mut() {
            set(setting);
        }
        row
    }

    #[test]
    fn what_sys_did_not_say_is_no_mmu_to_predict_by() {
        let slot = PolicyChoice::Announced(Policy::Slot);
        assert!(predicted(&made(Cause::PageOut, |_| (), true), slot).refaults.get().is_some());
        let unknown = made(Cause::PageOut, |setting| setting.mmu = SecondaryMmu::Unknown, true);
        let row = predicted(&unknown, slot);
        assert_eq!((row.refaults.get(), row.sptes_zapped_4k.get()), (None, None));
        assert_eq!(row.invalidations.get(), Some(1));
        for key in ["refaults", "collateral_faults", "sptes_zapped_4k"] {
            let why = row.warnings.about(key).unwrap();
            assert!(why.text.contains("does not say which secondary MMU"), "{key}: {}", why.text);
        }
    }

    #[test]
    fn what_the_kernel_announced_of_its_own_choice_is_not_predicted() {
        let folio = PolicyChoice::Announced(Policy::Folio);
        let of = |events: &RowEvents, policy| predicted(events, policy).invalidations.get();
        assert_eq!(
            of(&made(Cause::CgroupReclaim, |_| (), true), PolicyChoice::Kernel),
            Some(1),
            "by address"
        );
        let squeezed =
            made(Cause::CgroupReclaim, |setting| setting.label.tried.reclaim = Reclaim::Cgroup, false);
        assert_eq!(of(&squeezed, PolicyChoice::Kernel), None);
        assert_eq!(of(&squeezed, folio), Some(1));
        let watched = made(Cause::Watch, |_| (), false);
        assert_eq!(of(&watched, PolicyChoice::Kernel), None);
        assert_eq!(predicted(&watched, folio).needed_bytes.get(), Some(0));
    }

    #[test]
    fn what_does_not_depend_on_the_policy_is_as_it_was_and_times_are_null() {
        let events = made(Cause::PageOut, |_| (), true);
        let row = predicted(&events, PolicyChoice::Announced(Policy::Vm));
        assert_eq!((row.evicted_bytes.get(), row.needed_bytes.get()), (Some(4096), Some(4096)));
        assert_eq!((row.trials, row.zap_ns.is_null(), row.reclaim_ns.is_null()), (1, true, true));
        assert_eq!(
            (row.expected_ranges.get(), row.kernel_ranges.get(), row.integrity_errors.get()),
            (None, None, None)
        );
        assert_eq!(row.unexplained(), Vec::<&str>::new());
    }
}
