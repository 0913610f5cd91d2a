//! `zapscope timeline`: where a run's time went.

use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use super::args::TimelineArguments;
use super::recorded::Recorded;
use analysis::report;
use analysis::timeline::{RowTime, write_trace};
use experiment::events::RowEvents;
use program::exit::{Class, Classified, Exit, Failure};
use program::output;
use program::units::{self, Charset};
use program::whole_file::{Existing, WholeFile, WholeFileError};

#[derive(Debug, thiserror::Error)]
enum TimelineError {
    #[error("{} holds no row: run a scenario in which memory is taken", .0.display())]
    Nothing(PathBuf),
    #[error("there is no trace: name a file that can be written")]
    Place(#[source] WholeFileError),
    #[error("cannot write the trace {}", .0.display())]
    Trace(PathBuf, #[source] io::Error),
}

impl Classified for TimelineError {
    fn class(&self) -> Class {
        match self {
            Self::Nothing(_) => Class::Mistake,
            Self::Place(error) => error.class(),
            Self::Trace(_, source) => Class::of_named_file(source),
        }
    }
}

pub fn timeline(arguments: &TimelineArguments) -> Result<Exit, Failure> {
    let mut recorded = Recorded::open(&arguments.run)?;
    // Reserved before the log is read, which may take long.
    let trace = arguments.trace.as_deref().map(|path| WholeFile::create(path, Existing::Refused)).transpose();
    let trace = trace.map_err(TimelineError::Place)?;
    recorded.warning().iter().for_each(output::message);
    let (mut rows, mut times) = (Vec::new(), Vec::new());
    while let Some((events, row)) = recorded.next_row()? {
        if let Some(lost) = row.lost_events.get().filter(|lost| *lost > 0) {
            let (label, lost) = (&row.label, units::counted(lost, "event"));
            output::message(format_args!(
                "{}, {}: the kernel's account lost {lost}: its ranges are more than are shown",
                label.case, label.tried
            ));
        }
        times.push(RowTime::of(&events));
        // The events are kept for the trace alone; the sums are small.
        if arguments.trace.is_some() {
            rows.push(events);
        }
    }
    if times.is_empty() {
        return Err(TimelineError::Nothing(recorded.path).into());
    }
    if let Some((path, trace)) = arguments.trace.as_ref().zip(trace) {
        write_to(path, trace, &rows)?;
        output::message(format_args!("wrote {}: open it at https://ui.perfetto.dev", path.display()));
    }
    if arguments.json {
        output::json(format_args!("{}\n", serde_json::to_string_pretty(&times)?));
    } else {
        output::result(report::timeline(&times, Charset::of_locale(|name| std::env::var(name).ok())));
    }
    Ok(Exit::Done)
}

/// Writes the trace; without all of it there is no file.
fn write_to(path: &Path, trace: WholeFile, rows: &[RowEvents]) -> Result<(), TimelineError> {
    let failed = |source| TimelineError::Trace(path.to_owned(), source);
    let mut out = BufWriter::new(trace);
    write_trace(rows.iter(), &mut out).map_err(failed)?;
    let trace = out.into_inner().map_err(|error| failed(error.into_error()))?;
    trace.finish().map_err(|error| failed(error.into_io()))
}
