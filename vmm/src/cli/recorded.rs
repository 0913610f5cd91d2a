//! Reading a run directory again.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::events::{self, EventLog, EventLogError, RowEvents};
use crate::exit::{Class, Classified};
use crate::record::{RecordError, Row, RunRecord};

/// The largest run record read: thousands of rows.
const LARGEST_RECORD: u64 = 64 << 20;

/// Why a run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordedError {
    #[error("cannot read the run record {}: name the directory of a run", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("the run record {} has more than {LARGEST_RECORD} bytes: it is none", .0.display())]
    LargeRecord(PathBuf),
    #[error("{}", .0.display())]
    Record(PathBuf, #[source] RecordError),
    #[error("{}", .0.display())]
    Log(PathBuf, #[source] EventLogError),
    #[error("{}: row {} of it is not in the run.json beside it: keep the two files of a run together", .0.display(), .1)]
    OtherRun(PathBuf, u32),
}

impl Classified for RecordedError {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

/// A run directory, its log being read.
pub struct Recorded {
    /// The run record.
    pub record: RunRecord,
    /// Where the log is.
    pub path: PathBuf,
    log: EventLog<io::BufReader<File>>,
}

impl Recorded {
    /// Opens the directory of a run, or the one with this `run.json`.
    ///
    /// # Errors
    /// [`RecordedError`].
    pub fn open(run: &Path) -> Result<Self, RecordedError> {
        let (directory, json) = match run.is_dir() {
            true => (run.to_owned(), run.join("run.json")),
            false => (run.parent().unwrap_or(Path::new("")).to_owned(), run.to_owned()),
        };
        let mut text = String::new();
        let failed = |source| RecordedError::Read(json.clone(), source);
        File::open(&json)
            .and_then(|file| file.take(LARGEST_RECORD + 1).read_to_string(&mut text))
            .map_err(failed)?;
        if text.len() as u64 > LARGEST_RECORD {
            return Err(RecordedError::LargeRecord(json));
        }
        let record =
            RunRecord::from_json(&text).map_err(|source| RecordedError::Record(json.clone(), source))?;
        let path = directory.join(events::FILE_NAME);
        let log = EventLog::open(&path).map_err(|source| RecordedError::Log(path.clone(), source))?;
        Ok(Self { record, path, log })
    }

    /// The events of the next row of which there are any, with the row.
    ///
    /// # Errors
    /// [`RecordedError`].
    pub fn next_row(&mut self) -> Result<Option<(RowEvents, Row)>, RecordedError> {
        let next = self.log.next_row().map_err(|source| RecordedError::Log(self.path.clone(), source))?;
        let Some(events) = next else { return Ok(None) };
        let at = events.header.row;
        let row = self.record.rows.get(at as usize).filter(|row| row.label == events.header.label);
        match row.cloned() {
            Some(row) => Ok(Some((events, row))),
            None => Err(RecordedError::OtherRun(self.path.clone(), at)),
        }
    }
}
