//! `zapscope timeline`: where a run's time went.

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::args::TimelineArguments;
use super::recorded::Recorded;
use crate::events::RowEvents;
use crate::report::{self, Charset};
use crate::timeline::{RowTime, write_trace};

#[derive(Debug, thiserror::Error)]
enum TimelineError {
    #[error("{} holds no row: run a scenario in which memory is taken", .0.display())]
    Nothing(PathBuf),
    #[error("cannot write the trace {}: name a file that is not there yet", .0.display())]
    Trace(PathBuf, #[source] io::Error),
}

pub fn timeline(arguments: &TimelineArguments) -> Result<ExitCode, Box<dyn Error>> {
    let mut recorded = Recorded::open(&arguments.run)?;
    let (mut rows, mut times) = (Vec::new(), Vec::new());
    while let Some((events, _)) = recorded.next_row()? {
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
        write_to(path, &rows).map_err(|source| TimelineError::Trace(path.clone(), source))?;
        eprintln!("zapscope: wrote {}: open it at https://ui.perfetto.dev", path.display());
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&times)?);
    } else {
        print!("{}", report::timeline(&times, Charset::of_locale(|name| std::env::var(name).ok())));
    }
    Ok(ExitCode::SUCCESS)
}

fn write_to(path: &Path, rows: &[RowEvents]) -> io::Result<()> {
    let mut out = BufWriter::new(File::create_new(path)?);
    write_trace(rows.iter(), &mut out)?;
    out.flush()
}
