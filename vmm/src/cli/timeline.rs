//! `zapscope timeline`: where a run's time went.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::args::TimelineArguments;
use super::recorded::Recorded;
use crate::events::RowEvents;
use crate::exit::{Class, Classified, Exit, Failure};
use crate::report::{self, Charset};
use crate::timeline::{RowTime, write_trace};

#[derive(Debug, thiserror::Error)]
enum TimelineError {
    #[error("{} holds no row: run a scenario in which memory is taken", .0.display())]
    Nothing(PathBuf),
    #[error("the trace {} is there already: name another file", .0.display())]
    TraceExists(PathBuf),
    #[error("cannot write the trace {}", .0.display())]
    Trace(PathBuf, #[source] io::Error),
}

impl Classified for TimelineError {
    fn class(&self) -> Class {
        match self {
            Self::Nothing(_) | Self::TraceExists(_) => Class::Mistake,
            Self::Trace(_, source) => Class::of_named_file(source),
        }
    }
}

pub fn timeline(arguments: &TimelineArguments) -> Result<Exit, Failure> {
    let mut recorded = Recorded::open(&arguments.run)?;
    let (mut rows, mut times) = (Vec::new(), Vec::new());
    while let Some((events, row)) = recorded.next_row()? {
        if let Some(lost) = row.lost_events.get().filter(|lost| *lost > 0) {
            let label = &row.label;
            eprintln!(
                "zapscope: {}, {}, {}, {}: the kernel's account lost {lost} events: its ranges are more than are shown",
                label.case, label.backing, label.policy, label.reclaim
            );
        }
        times.push(RowTime::of(&events));
        // The sums are small; every event is kept for the trace alone.
        if arguments.trace.is_some() {
            rows.push(events);
        }
    }
    if times.is_empty() {
        return Err(TimelineError::Nothing(recorded.path).into());
    }
    if let Some(path) = &arguments.trace {
        write_to(path, &rows)?;
        eprintln!("zapscope: wrote {}: open it at https://ui.perfetto.dev", path.display());
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&times)?);
    } else {
        print!("{}", report::timeline(&times, Charset::of_locale(|name| std::env::var(name).ok())));
    }
    Ok(Exit::Done)
}

/// The whole trace, or no file.
fn write_to(path: &Path, rows: &[RowEvents]) -> Result<(), TimelineError> {
    let failed = |source| TimelineError::Trace(path.to_owned(), source);
    let file = File::create_new(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => TimelineError::TraceExists(path.to_owned()),
        _ => failed(error),
    })?;
    let mut out = BufWriter::new(file);
    let written = write_trace(rows.iter(), &mut out).and_then(|()| out.flush());
    written.map_err(|error| {
        // Half of one would be in the way of the next try; if it cannot be removed, that is said then.
        let _ = fs::remove_file(path);
        failed(error)
    })
}
