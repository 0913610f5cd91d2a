//! Reading a run directory.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use experiment::events::{self, EventLog, EventLogError, RowEvents};
use experiment::record::{RecordError, Row, RunRecord};
use program::exit::{Class, Classified};
use program::input::{self, FileKind, Input, InputError};

/// A run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("{} has no run.json: its run ended, or was killed, before it had finished a row, or could not write it: run the scenario again", .0.display())]
    NoRow(PathBuf),
    #[error("{}", .0.display())]
    Record(PathBuf, #[source] RecordError),
    #[error("{}", .0.display())]
    Log(PathBuf, #[source] EventLogError),
    #[error("{}: row {} of it is not in the run.json beside it: keep the two files of a run together", .0.display(), .1)]
    OtherRun(PathBuf, u32),
}

impl Classified for RecordedError {
    fn class(&self) -> Class {
        match self {
            Self::Input(error) => error.class(),
            _ => Class::Mistake,
        }
    }
}

/// A run directory, whose log is read row by row.
///
/// The record of a run that was killed or goes on is marked. Its log may have one row more than the record, which may be
/// incomplete: reading ends before it.
pub struct Recorded {
    /// The run record.
    pub record: RunRecord,
    /// The path of the log.
    pub path: PathBuf,
    log: EventLog<BufReader<File>>,
    has_ended: bool,
}

impl Recorded {
    /// Opens the directory of a run, or the one with this `run.json`.
    pub fn open(run: &Path) -> Result<Self, RecordedError> {
        let (directory, json) = match run.is_dir() {
            true => (run.to_owned(), run.join("run.json")),
            false => (run.parent().unwrap_or(Path::new("")).to_owned(), run.to_owned()),
        };
        let path = directory.join(events::FILE_NAME);
        let text = input::read(FileKind::RunRecord, &json).map_err(|error| match error.is_missing() {
            true if path.exists() => RecordedError::NoRow(directory.clone()),
            _ => error.into(),
        })?;
        let record = RunRecord::from_json(&String::from_utf8_lossy(&text))
            .map_err(|source| RecordedError::Record(json.clone(), source))?;
        let log = Input::open(FileKind::EventLog, &path)?.into_file();
        let log =
            EventLog::new(BufReader::new(log)).map_err(|source| RecordedError::Log(path.clone(), source))?;
        Ok(Self { has_ended: record.has_ended(), record, path, log })
    }

    /// A warning if the run did not end.
    pub fn warning(&self) -> Option<String> {
        let (rows, run) = (self.record.rows.len(), self.path.parent().unwrap_or(Path::new("")).display());
        (!self.has_ended).then(|| {
            format!(
                "{run}: this run did not end (it was killed, or goes on); rows finished until then: {rows}"
            )
        })
    }

    /// The next row with events, and its events.
    pub fn next_row(&mut self) -> Result<Option<(RowEvents, Row)>, RecordedError> {
        let events = match self.log.next_row() {
            Ok(Some(events)) => events,
            Ok(None) => return Ok(None),
            Err(EventLogError::Truncated { .. }) if !self.has_ended => return Ok(None),
            Err(source) => return Err(RecordedError::Log(self.path.clone(), source)),
        };
        let at = events.row;
        match self.record.rows.get(at as usize) {
            Some(row) if row.label == events.setting().label => Ok(Some((events, row.clone()))),
            None if !self.has_ended => Ok(None),
            _ => Err(RecordedError::OtherRun(self.path.clone(), at)),
        }
    }
}
