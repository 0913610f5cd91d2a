//! The destination of finished rows.

use std::io;
use std::path::PathBuf;

use guest_mem::remedy::{self, Asked};

use experiment::events::Section;
use experiment::record::RunRecord;

/// Takes a run's rows, each as soon as it is finished: what it has taken is not lost by how the run ends.
pub trait RowSink {
    /// Takes the run as it stands, whose last row has just been finished, and what happened in that row, if it ran.
    ///
    /// # Errors
    /// It could not be kept. The run goes on, and the next row comes with the whole record again.
    fn take(&mut self, run: &RunRecord, events: Option<Section>) -> Result<(), NotKept>;
}

/// No destination: rows are only in the outcome.
impl RowSink for () {
    fn take(&mut self, _run: &RunRecord, _events: Option<Section>) -> Result<(), NotKept> {
        Ok(())
    }
}

/// A finished row is not on the disk.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}{}", path.display(), remedy::after_io(Asked::Room, source))]
pub struct NotKept {
    /// The file.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}
