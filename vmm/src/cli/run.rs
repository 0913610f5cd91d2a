//! `zapscope run`.

use std::path::Path;
use std::time::SystemTime;

use super::args::{BackendChoice, Format, GuestChoice, RunArguments};
use super::interrupt::cancel_on_signal;
use super::run_directory::RunDirectory;
use super::{backend, changes, progress::Shown, zram};
use analysis::report::{self, ktap};
use experiment::choice::RowLabel;
use experiment::choice::Size;
use experiment::record::utc;
use experiment::scenario::{RowPlan, Scenario};
use guest_mem::with_causes;
use host::{Cancel, Neighbours};
use lab::{Ended, RowSink, RunOutcome, Runner, TapChoice, Tapping};
use program::exit::{Class, Classified, Exit, Failure};
use program::output;
use program::units::{self, Charset};

/// The key of warnings about accounts that disagree.
const DIFFERENCES: &str = "account_differences";

/// What `--tap tracefs` means.
const NO_INSTANCE: &str = "--tap tracefs: tracefs instances are not used any more; as with `--tap auto` a BPF program keeps \
                           the kernel's account, or perf events where BPF is refused";

/// Parts of a Linux guest without a Linux guest.
#[derive(Debug, thiserror::Error)]
#[error("--kernel and --modules are a Linux guest's, and this scenario has none: add `--guest linux`")]
struct NotLinux;

impl Classified for NotLinux {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

/// There is no scenario of this name.
#[derive(Debug, thiserror::Error)]
#[error("no scenario `{name}`: name a TOML file, or one of the built-in {known}")]
struct NoScenario {
    name: String,
    known: String,
}

impl Classified for NoScenario {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

pub fn run(arguments: &RunArguments) -> Result<Exit, Failure> {
    // Files first, before any change to the host.
    let scenario = in_guest(scenario(&arguments.scenario)?, arguments)?;
    let started_at = utc(SystemTime::now());
    // From here on a signal cancels, and the directory is removed on the way out.
    let cancel = cancel_on_signal()?;
    let mut directory = RunDirectory::reserve(arguments.out.as_deref(), &started_at, &scenario.name)?;
    let plans: Vec<_> = scenario.rows().collect();
    let (outcome, left_changed) = live(
        &scenario,
        &plans,
        &Live {
            backend: arguments.backend,
            zram: arguments.zram,
            tune: arguments.tune,
            tap: arguments.tap,
            cancel,
        },
        &mut directory,
    )?;
    // Before the output, which may block. The output follows even if writing failed.
    let written = directory.finish(&outcome.record);
    // A run that failed before its first row has no output but the error.
    if !(outcome.record.rows.is_empty() && matches!(outcome.ended, Ended::Failed(_))) {
        publish(arguments, &outcome)?;
    }
    let code = code(&outcome, left_changed);
    match &written {
        Ok(Some(path)) => output::message(format_args!("the run record is in {}", path.display())),
        Ok(None) => {}
        Err(lost) => output::message(with_causes(lost)),
    }
    match (outcome.ended, written) {
        (Ended::Failed(error), _) => Err(error.into()),
        (_, Err(lost)) => Ok(lost.class().into()),
        (_, Ok(_)) => Ok(code),
    }
}

/// The options of a run.
pub(super) struct Live {
    pub backend: BackendChoice,
    /// The size of a swap device for the run.
    pub zram: Option<Size>,
    /// Whether the host's switches are set as each row needs them.
    pub tune: bool,
    pub tap: TapChoice,
    pub cancel: Cancel,
}

/// Runs these rows of a scenario; returns also whether a change to the host could not be undone.
pub(super) fn live(
    scenario: &Scenario,
    plans: &[RowPlan<'_>],
    how: &Live,
    sink: &mut dyn RowSink,
) -> Result<(RunOutcome, bool), Failure> {
    let (backend, notice) = backend::choose(how.backend)?;
    scenario.check_slots(backend.arena_slots())?;
    if let Some(notice) = &notice {
        output::message(notice);
    }
    let mut neighbours = Neighbours::join().ok();
    if let Some(warning) = neighbours.as_mut().and_then(Neighbours::warning) {
        output::message(warning);
    }
    if how.tap == TapChoice::Tracefs {
        output::message(NO_INSTANCE);
    }
    let runner = Runner::new(scenario, backend, &how.cancel)?;
    let changes = changes::begin();
    if let Some(size) = how.zram {
        zram::add_if_allowed(&changes, size.0)?;
    }
    let mut shown = Shown::default();
    let tapping = Tapping::new(how.tap);
    let mut outcome = runner.tapped(tapping).changing(&changes, how.tune).run_rows(plans, &mut shown, sink);
    drop(shown);
    let undone = changes::end(&changes);
    if let Some(warning) = neighbours.as_mut().and_then(Neighbours::warning) {
        outcome.record.warnings.say(warning);
    }
    Ok((outcome, !undone))
}

/// The scenario, with the guest of the command line.
fn in_guest(scenario: Scenario, arguments: &RunArguments) -> Result<Scenario, Failure> {
    let (kernel, modules) = (arguments.kernel.clone(), arguments.modules.clone());
    let named = kernel.is_some() || modules.is_some();
    match (arguments.guest, scenario.linux.is_some()) {
        (Some(GuestChoice::Linux), _) | (None, true) => Ok(scenario.in_linux(kernel, modules)),
        _ if named => Err(NotLinux.into()),
        (Some(GuestChoice::Bare), _) => Ok(scenario.in_bare_guest()?),
        (None, false) => Ok(scenario),
    }
}

fn scenario(path: &Path) -> Result<Scenario, Failure> {
    if let Some((name, text)) = resources::SCENARIOS.iter().find(|(known, _)| path.as_os_str() == *known) {
        return Ok(Scenario::parse(text, &format!("built-in {name}"))?);
    }
    let looks_like_a_file = path.as_os_str().as_encoded_bytes().iter().any(|byte| b"/.".contains(byte));
    if !path.exists() && !looks_like_a_file {
        let known: Vec<_> = resources::SCENARIOS.iter().map(|(known, _)| *known).collect();
        return Err(NoScenario { name: path.display().to_string(), known: known.join(", ") }.into());
    }
    Ok(Scenario::load(path)?)
}

/// Prints the table or the record.
fn publish(arguments: &RunArguments, outcome: &RunOutcome) -> Result<(), Failure> {
    let record = &outcome.record;
    let json = record.to_json()?;
    let charset = Charset::of_locale(|name| std::env::var(name).ok());
    let text = format!("{}\n{}\n", report::table(record, charset), report::words(record, charset));
    match (arguments.json, arguments.format) {
        (true, _) => {
            output::beside(&text);
            output::json(&json);
        }
        (false, Format::Ktap) => {
            output::beside(&text);
            output::result(ktap::ktap(&ktap::of_run(record)));
        }
        (false, Format::Text) => output::result(&text),
    }
    for warning in record.warnings.iter() {
        output::message(format_args!("warning: {warning}"));
    }
    Ok(())
}

fn code(outcome: &RunOutcome, left_changed: bool) -> Exit {
    let wrong = outcome.record.integrity_errors();
    if wrong > 0 {
        let wrong = units::counted(wrong, "page");
        output::message(format_args!("{wrong} came back WRONG; see integrity_errors in the record"));
    }
    let differed = outcome.record.account_differences();
    for row in
        outcome.record.rows.iter().filter(|row| row.account_differences.get().is_some_and(|count| count > 0))
    {
        let RowLabel { case, tried, .. } = &row.label;
        for warning in row.warnings.iter().filter(|warning| warning.keys.iter().any(|key| key == DIFFERENCES))
        {
            output::message(format_args!("{case}, {tried}: {}", warning.text));
        }
    }
    if outcome.failed > 0 {
        output::message(format_args!("{} failed", units::counted(outcome.failed.into(), "row")));
    }
    let unmet = outcome.record.failed_expectations();
    if unmet > 0 {
        output::message(format_args!(
            "{} did not come true; see expectations in the record",
            units::counted(unmet as u64, "expectation")
        ));
    }
    if matches!(outcome.ended, Ended::Cancelled) {
        match outcome.record.rows.len() {
            0 => output::message("stopped before the end of its first row: there is nothing to keep"),
            _ => output::message("stopped before its end; the record has the rows made until then"),
        }
        return Exit::Interrupted;
    }
    if wrong > 0 || differed > 0 || unmet > 0 || outcome.failed > 0 {
        return Exit::Wrong;
    }
    if left_changed {
        return Exit::Fault;
    }
    let missing = outcome.record.rows.iter().filter(|row| row.could_not_run.is_some()).count();
    if missing > 0 {
        let rows = units::counted(missing as u64, "row");
        output::message(format_args!("{rows} could not run on this host; the record says why"));
        return Exit::Host;
    }
    Exit::Done
}
