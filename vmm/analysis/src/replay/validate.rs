//! Predicted against measured: what a replay says of a row, and what the row was when it ran.

use super::rows::Predicted;
use experiment::choice::PolicyChoice;
use experiment::record::Row;

/// The part by which collateral faults may differ.
const TOLERANCE: f64 = 0.1;
/// With so many times the time they need, hot loops come round whatever else runs.
const SLACK: f64 = 4.0;
/// A handful of faults is nothing to take a percentage of.
const HANDFUL: u64 = 16;

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// As it should be.
    Agrees,
    /// They differ by more than the model explains.
    Differs,
    /// It cannot be said, for this reason.
    Undecided(String),
}

/// The comparison of one key of one row.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct Check {
    pub key: &'static str,
    pub predicted: Option<u64>,
    pub measured: Option<u64>,
    pub judgement: Judgement,
}

/// Compares a prediction with the row that ran.
pub fn checks(predicted: &Predicted, measured: &Row) -> Vec<Check> {
    let row = &predicted.row;
    let exact = [
        ("victims", &row.victims, &measured.victims),
        ("evicted_bytes", &row.evicted_bytes, &measured.evicted_bytes),
        ("invalidations", &row.invalidations, &measured.invalidations),
        ("needed_bytes", &row.needed_bytes, &measured.needed_bytes),
        ("invalidated_bytes", &row.invalidated_bytes, &measured.invalidated_bytes),
        ("slots_zapped", &row.slots_zapped, &measured.slots_zapped),
        ("zapped_bytes", &row.zapped_bytes, &measured.zapped_bytes),
    ];
    let mut checks: Vec<Check> = exact
        .into_iter()
        .map(|(key, predicted, measured)| {
            check(key, predicted.get(), measured.get(), |a, b| match a == b {
                true => Judgement::Agrees,
                false => Judgement::Differs,
            })
        })
        .collect();
    for check in checks.iter_mut().filter(|check| Row::ANNOUNCED.contains(&check.key)) {
        if let Some(why) = of_kernel(measured, &check.judgement) {
            check.judgement = Judgement::Undecided(why.to_owned());
        }
    }
    checks.push(check("refaults", row.refaults.get(), measured.refaults.get(), near));
    let (ours, theirs) = (row.collateral_faults.get(), measured.collateral_faults.get());
    checks.push(check("collateral_faults", ours, theirs, |ours, theirs| match near(ours, theirs) {
        Judgement::Differs => rushed(predicted).map_or(Judgement::Differs, Judgement::Undecided),
        judgement => judgement,
    }));
    checks
}

/// The reason why a comparison with the kernel's own ranges proves nothing, if it does not: a prediction is of the expected
/// ranges.
fn of_kernel(measured: &Row, judgement: &Judgement) -> Option<&'static str> {
    if measured.is_expected() {
        return Some("it was not measured: the run has no kernel's account, or lost events of it");
    }
    let repeats =
        measured.label.tried.policy == PolicyChoice::Kernel && measured.account_differences.get() == Some(0);
    (repeats && *judgement == Judgement::Differs)
        .then_some("this kernel announces the split of a huge page more often than once, as some do")
}

fn check(
    key: &'static str,
    predicted: Option<u64>,
    measured: Option<u64>,
    judge: impl FnOnce(u64, u64) -> Judgement,
) -> Check {
    let judgement = match (predicted, measured) {
        (Some(ours), Some(theirs)) => judge(ours, theirs),
        (None, _) => Judgement::Undecided("it is not predicted".to_owned()),
        (_, None) => Judgement::Undecided("it was not measured".to_owned()),
    };
    Check { key, predicted, measured, judgement }
}

/// Whether two counts are within a tenth of each other, or both a handful.
pub fn near(a: u64, b: u64) -> Judgement {
    let apart = a.abs_diff(b);
    if apart <= HANDFUL || apart as f64 <= TOLERANCE * a.max(b) as f64 {
        Judgement::Agrees
    } else {
        Judgement::Differs
    }
}

/// The reason why a different count proves nothing, if it does not: with little time from one victim to the next, other load on
/// the processor decides how far the hot loops come. Two runs differ as much.
fn rushed(predicted: &Predicted) -> Option<String> {
    let (least, most) = predicted.bounds?;
    let time = match predicted.slack {
        Some(slack) if slack >= SLACK => return None,
        Some(slack) => format!("has {slack:.1} times as long as it needs to come round"),
        None => "has a time that the log does not tell".to_owned(),
    };
    Some(format!(
        "from one victim to the next the hot loop {time}; between {least} and {most} its speed decides: give the step a \
         `pace` that leaves it {SLACK} times as long"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use experiment::choice::fixture;
    use experiment::record::Measured;

    fn row(collateral: u64) -> Row {
        let label = fixture::label(["a", "4k", "vm", "pageout", "memslot", "kvm-slots"]);
        let mut row = Row::could_not_run(label, "");
        row.victims = Measured::of(4);
        row.collateral_faults = Measured::of(collateral);
        row
    }

    fn judge(ours: u64, slack: Option<f64>, theirs: u64) -> Judgement {
        let predicted = Predicted { row: row(ours), bounds: Some((0, 9_000)), slack };
        checks(&predicted, &row(theirs)).pop().unwrap().judgement
    }

    #[test]
    fn counts_agree_exactly_or_not_at_all() {
        let predicted = Predicted { row: row(0), bounds: None, slack: None };
        let mut other = row(0);
        assert_eq!(checks(&predicted, &other)[0].judgement, Judgement::Agrees);
        other.victims = Measured::of(5);
        assert_eq!(checks(&predicted, &other)[0].judgement, Judgement::Differs);
        assert!(
            matches!(checks(&predicted, &other)[2].judgement, Judgement::Undecided(_)),
            "null on both sides"
        );
    }

    /// What a prediction of 8 ranges comes to against a row of policy `kernel` that has `ranges`.
    fn of_ranges(ranges: u64, by_account: bool, differences: Option<u64>) -> Judgement {
        let mut ours = row(0);
        ours.invalidations = Measured::of(8);
        let mut theirs = row(0);
        theirs.label.tried.policy = PolicyChoice::Kernel;
        (theirs.could_not_run, theirs.invalidations) = (None, Measured::of(ranges));
        if by_account {
            (theirs.kernel_ranges, theirs.lost_events) = (Measured::of(ranges), Measured::of(0));
        }
        if let Some(differences) = differences {
            theirs.account_differences = Measured::of(differences);
        }
        let predicted = Predicted { row: ours, bounds: None, slack: None };
        checks(&predicted, &theirs).into_iter().find(|check| check.key == "invalidations").unwrap().judgement
    }

    #[test]
    fn what_the_kernel_announced_is_compared_where_it_was_measured() {
        assert_eq!(of_ranges(8, true, Some(0)), Judgement::Agrees);
        assert_eq!(of_ranges(9, true, Some(1)), Judgement::Differs);
        assert!(matches!(of_ranges(9, true, Some(0)), Judgement::Undecided(why) if why.contains("split")));
        assert!(
            matches!(of_ranges(8, false, None), Judgement::Undecided(why) if why.contains("not measured"))
        );
    }

    #[test]
    fn collateral_faults_agree_within_a_tenth() {
        assert_eq!(judge(1_000, Some(9.0), 1_099), Judgement::Agrees);
        assert_eq!(judge(1_000, Some(9.0), 880), Judgement::Differs, "it comes round, and yet");
        assert_eq!(judge(3, Some(9.0), 12), Judgement::Agrees, "a handful");
        assert!(matches!(judge(1_000, Some(1.5), 2_000), Judgement::Undecided(_)), "it may not come round");
        assert!(matches!(judge(1_000, None, 2_000), Judgement::Undecided(_)), "nobody knows");
    }
}
