//! `zapscope replay`: a run's victims under other range policies.

use std::path::{Path, PathBuf};

use notifier_bridge::Policy;

use super::args::{Format, ReplayArguments};
use super::interrupt::cancel_on_signal;
use super::recorded::Recorded;
use super::run;
use analysis::replay;
use analysis::report::{self, ktap};
use experiment::choice::RowLabel;
use experiment::choice::{Combination, Granule, PolicyChoice, Size, ZapChoice};
use experiment::events::{Event, RowEvents};
use experiment::record::{Row, RunRecord};
use experiment::scenario::{RowPlan, Scenario};
use lab::{Ended, RunOutcome, TapChoice};
use program::exit::{Class, Classified, Exit, Failure};
use program::output;
use program::units::{self, Charset};

/// The number of recorded rows that `--validate` runs, each under every policy.
const SAMPLE: usize = 3;

/// The run cannot be replayed.
#[derive(Debug, thiserror::Error)]
enum ReplayRefused {
    #[error("--granule {0}: it must be a power of two, at least 4 KiB")]
    Granule(Size),
    #[error("{} holds no row to replay: run a scenario in which memory is taken", .0.display())]
    Nothing(PathBuf),
}

impl Classified for ReplayRefused {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

/// A recorded row from which others are predicted.
struct Source {
    events: RowEvents,
    row: Row,
}

pub fn replay(arguments: &ReplayArguments) -> Result<Exit, Failure> {
    let granule = arguments.granule.map(|size| Granule::new(size.0).ok_or(ReplayRefused::Granule(size)));
    let granule = granule.transpose()?;
    let (record, sources) = load(&arguments.run, granule.is_some())?;
    if arguments.validate {
        return validate(arguments, &record, &sources, granule);
    }
    let mut rows = Vec::new();
    for source in &sources {
        for &policy in &arguments.policy {
            rows.push(replay::row(&source.events, policy, granule)?.row);
        }
    }
    let mut record = RunRecord { rows, ..record };
    let from: Vec<String> = sources.iter().map(|source| describe(&source.row)).collect();
    record.warnings.say(format!("a replay: no row ran; they are predicted from {}", from.join("; ")));
    let charset = Charset::of_locale(|name| std::env::var(name).ok());
    let table = report::table(&record, charset);
    if arguments.json {
        output::beside(&table);
        output::json(record.to_json()?);
    } else {
        output::result(&table);
    }
    Ok(Exit::Done)
}

/// `sparse, 4k, kernel, pageout`.
fn describe(row: &Row) -> String {
    format!("{}, {}", row.label.case, row.label.tried)
}

/// Reads the record, and of each group of rows that differ in the policy alone the events of the least disturbed one.
fn load(run: &Path, any_granule: bool) -> Result<(RunRecord, Vec<Source>), Failure> {
    let mut recorded = Recorded::open(run)?;
    recorded.warning().iter().for_each(output::message);
    let mut sources: Vec<Source> = Vec::new();
    while let Some((events, row)) = recorded.next_row()? {
        if !events.first_trial().iter().any(|event| matches!(event, Event::OperationBegan(_))) {
            continue;
        }
        let source = Source { events, row };
        let group = |label: &RowLabel| {
            let tried = &label.tried;
            (label.case.clone(), tried.backing, tried.reclaim, (!any_granule).then_some(tried.granule))
        };
        let same = |known: &&mut Source| group(&known.row.label) == group(&source.row.label);
        match sources.iter_mut().find(same) {
            Some(known) if disturbance(&source) < disturbance(known) => *known = source,
            Some(_) => {}
            None => sources.push(source),
        }
    }
    if sources.is_empty() {
        Err(ReplayRefused::Nothing(recorded.path).into())
    } else {
        Ok((recorded.record, sources))
    }
}

/// A measure of the disturbance by the listener, which makes the times between victims worse. A row with the speed of its hot
/// loops comes before one without.
fn disturbance(source: &Source) -> (bool, u8) {
    let place = match source.row.label.tried.policy.announced() {
        None => 0,
        Some(Policy::Modern) => 1,
        Some(Policy::Folio) => 2,
        Some(Policy::Page) => 3,
        Some(Policy::Pmd) => 4,
        Some(_) => 5,
    };
    let refills = source.events.first_trial().iter().any(|event| matches!(event, Event::Refill(_)));
    (!refills, place)
}

/// Runs a sample of the predicted rows, and compares.
fn validate(
    arguments: &ReplayArguments,
    record: &RunRecord,
    sources: &[Source],
    granule: Option<Granule>,
) -> Result<Exit, Failure> {
    let scenario = Scenario::parse(&record.scenario, "the scenario in run.json")?;
    let step = sources.len().div_ceil(SAMPLE).max(1);
    let (mut plans, mut predicted) = (Vec::new(), Vec::new());
    for source in sources.iter().step_by(step) {
        for &policy in &arguments.policy {
            let Some(plan) = plan(&scenario, &source.row, policy, granule) else { continue };
            predicted.push(replay::row(&source.events, policy, granule)?);
            plans.push(plan);
        }
    }
    let (outcome, left_changed) = run::live(
        &scenario,
        &plans,
        &run::Live {
            backend: arguments.backend,
            zram: arguments.zram,
            tune: arguments.tune,
            tap: TapChoice::Auto,
            cancel: cancel_on_signal()?,
        },
        &mut (),
    )?;
    let charset = Charset::of_locale(|name| std::env::var(name).ok());
    let compared: Vec<_> = predicted
        .iter()
        .zip(&outcome.record.rows)
        .map(|(predicted, row)| (row, replay::checks(predicted, row)))
        .collect();
    let text = report::comparison(&compared, charset);
    match arguments.format {
        Format::Text => output::result(&text),
        Format::Ktap => {
            output::beside(&text);
            output::result(ktap::ktap(&ktap::of_comparison(&compared)));
        }
    }
    let differ = compared.iter().flat_map(|(_, checks)| checks);
    let differ = differ.filter(|check| check.judgement == replay::Judgement::Differs).count();
    exit(outcome, differ as u64, left_changed)
}

/// The exit code of a run of predicted rows, of which so many counts differ.
fn exit(outcome: RunOutcome, differ: u64, left_changed: bool) -> Result<Exit, Failure> {
    match outcome.ended {
        Ended::Complete => {}
        Ended::Cancelled => return Ok(Exit::Interrupted),
        Ended::Failed(error) => return Err(error.into()),
    }
    if differ > 0 || outcome.failed > 0 {
        output::message(format_args!(
            "not as predicted: {}; {} failed",
            units::counted(differ, "count"),
            units::counted(outcome.failed.into(), "row")
        ));
        return Ok(Exit::Wrong);
    }
    if left_changed {
        return Ok(Exit::Fault);
    }
    let missing = outcome.record.rows.iter().filter(|row| row.could_not_run.is_some()).count();
    Ok(if missing > 0 { Exit::Host } else { Exit::Done })
}

/// The plan of a recorded row under another policy; `None` if the scenario has no such case any more, or the combination is
/// impossible.
fn plan<'s>(
    scenario: &'s Scenario,
    row: &Row,
    policy: PolicyChoice,
    granule: Option<Granule>,
) -> Option<RowPlan<'s>> {
    let label = &row.label;
    let combination = Combination {
        policy,
        granule: granule.unwrap_or(label.tried.granule),
        zap: ZapChoice::Auto.under(policy),
        ..label.tried
    };
    let case = scenario.cases.iter().find(|case| case.name == label.case)?;
    combination.is_possible().then_some(RowPlan { case, combination })
}
