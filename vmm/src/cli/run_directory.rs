//! The run directory: one for each run, never overwritten. It has `events.log` and `run.json`, which can be read at any time.
//!
//! ```text
//!   reserve ── the directory, an empty log            before anything of the host is changed
//!      │
//!   a row ──── its section into the log ── synced ── run.json replaced ── synced
//!      │          the disk is full: the section waits, and the next row tries again
//!   finish ─── the same once more, with a record that says how the run ended
//! ```
//!
//! Rows that the log lacks are named in the record's warnings. The log may have one row more than the record.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use super::place::PlaceError;
use super::record_file::RecordFile;
use experiment::events::{FILE_NAME, LogFile, Section};
use experiment::record::RunRecord;
use guest_mem::with_causes;
use lab::{NotKept, RowSink};
use program::exit::{Class, Classified};

/// The name of the record in a run directory.
pub const RECORD: &str = "run.json";

/// The run is over, and its directory is not complete.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} does not hold the whole run: run it again, or take the record from `--json`",
    directory.display()
)]
pub struct Incomplete {
    directory: PathBuf,
    #[source]
    why: NotKept,
}

impl Classified for Incomplete {
    fn class(&self) -> Class {
        Class::Fault
    }
}

/// A run directory that is being written. Without a finished row it is removed.
#[derive(Debug)]
pub struct RunDirectory {
    log: LogFile,
    /// Sections that are not written yet, in order.
    waiting: VecDeque<Section>,
    record: RecordFile,
}

impl RunDirectory {
    /// Reserves `out`, or a directory named by the time and the scenario.
    ///
    /// # Errors
    /// [`PlaceError`], also if the directory has a run.
    pub fn reserve(out: Option<&Path>, started_at: &str, scenario: &str) -> Result<Self, PlaceError> {
        let record = RecordFile::reserve(out, started_at, scenario, RECORD, &[FILE_NAME])?;
        let path = record.place().path().join(FILE_NAME);
        match LogFile::create(&path) {
            Ok(log) => Ok(Self { log, waiting: VecDeque::new(), record }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(PlaceError::Taken(path)),
            Err(source) => Err(PlaceError::Write { path, source }),
        }
    }

    /// Writes the record of the whole run; returns its path, `None` if no row was finished.
    ///
    /// # Errors
    /// [`Incomplete`]; the last record stays.
    pub fn finish(mut self, run: &RunRecord) -> Result<Option<PathBuf>, Incomplete> {
        if run.rows.is_empty() {
            return Ok(None);
        }
        match self.take(run, None) {
            Ok(()) => Ok(Some(self.record.path().to_owned())),
            Err(why) => Err(Incomplete { directory: self.record.place().path().to_owned(), why }),
        }
    }

    fn log_path(&self) -> PathBuf {
        self.record.place().path().join(FILE_NAME)
    }

    /// Writes the waiting sections, as many as fit.
    fn write_log(&mut self) -> Result<(), NotKept> {
        while let Some(section) = self.waiting.front() {
            if let Err(source) = self.log.append(section) {
                return Err(NotKept { path: self.log_path(), source });
            }
            self.waiting.pop_front();
        }
        self.log.sync().map_err(|source| NotKept { path: self.log_path(), source })
    }

    fn write_record(&mut self, run: &RunRecord) -> Result<(), NotKept> {
        let json = run
            .to_json()
            .map_err(|source| NotKept { path: self.record.path().to_owned(), source: source.into() })?;
        self.record.put(&json)
    }

    /// The record, with a warning about the rows that the log lacks.
    fn with_gap(&self, run: &RunRecord, why: &NotKept) -> RunRecord {
        let mut run = run.clone();
        let rows: Vec<_> = self.waiting.iter().map(|section| section.row().to_string()).collect();
        run.warnings.say(format!(
            "{FILE_NAME} lacks the events of row {} (counted from 0), which did not fit: {}",
            rows.join(", "),
            with_causes(why)
        ));
        run
    }
}

impl RowSink for RunDirectory {
    fn take(&mut self, run: &RunRecord, events: Option<Section>) -> Result<(), NotKept> {
        self.record.keep_place();
        self.waiting.extend(events);
        match self.write_log() {
            Ok(()) => self.write_record(run),
            // The log is written, and syncing it failed.
            Err(why) if self.waiting.is_empty() => self.write_record(run).and(Err(why)),
            // The record may still fit.
            Err(why) => {
                let run = self.with_gap(run, &why);
                self.write_record(&run).and(Err(why))
            }
        }
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if !self.record.place().is_kept() {
            // It was made by this run. If this fails, the directory stays.
            let _ = std::fs::remove_file(self.log_path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::recorded::{Recorded, RecordedError};
    use super::*;
    use experiment::record::Row;
    use experiment::scenario::{RowPlan, Scenario};
    use host::signals::Cancel;
    use lab::{Backend, Progress, RunOutcome, Runner};

    const SCENARIO: &str = "name = \"x\"\nmemory = \"4MiB\"\n[matrix]\nbacking = [\"4k\"]\n\
        policy = [\"kernel\", \"folio\", \"pmd\"]\nreclaim = [\"dontneed\"]\n[[case]]\nname = \"c\"\n\
        [[case.step]]\ndo = \"fill\"\n[[case.step]]\ndo = \"reclaim\"\nvictims = \"sparse\"\ncount = 3\n";
    const ROWS: usize = 3;

    /// Calls a function before each row.
    struct Before<F>(F, Vec<String>);

    impl<F: FnMut(usize)> Progress for Before<F> {
        fn row(&mut self, index: usize, _of: usize, _row: &RowPlan<'_>) {
            (self.0)(index);
        }

        fn done(&mut self, _row: &Row) {}

        fn not_kept(&mut self, why: &NotKept) {
            self.1.push(with_causes(why));
        }
    }

    fn run(directory: &mut RunDirectory, before: impl FnMut(usize)) -> (RunOutcome, Vec<String>) {
        let scenario = Scenario::parse(SCENARIO, "x.toml").unwrap();
        let plans: Vec<_> = scenario.rows().collect();
        assert_eq!(plans.len(), ROWS);
        let cancel = Cancel::new().unwrap();
        let runner = Runner::new(&scenario, Backend::Soft, &cancel).unwrap();
        let mut before = Before(before, Vec::new());
        (runner.run_rows(&plans, &mut before, directory), before.1)
    }

    /// The rows in the record, those that are read with their events, and whether the run ended.
    fn read(out: &Path) -> (usize, usize, bool) {
        let mut recorded = Recorded::open(out).unwrap();
        let mut rows = 0;
        while recorded.next_row().unwrap().is_some() {
            rows += 1;
        }
        (recorded.record.rows.len(), rows, recorded.warning().is_none())
    }

    struct Out(tempfile::TempDir);

    impl Out {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("out")
        }

        fn reserve(&self) -> RunDirectory {
            RunDirectory::reserve(Some(&self.path()), "t", "x").unwrap()
        }
    }

    #[test]
    fn each_row_is_on_the_disk_before_the_next_one_begins() {
        let out = Out::new();
        let mut directory = out.reserve();
        let (outcome, lost) = run(&mut directory, |index| match index {
            0 => assert!(matches!(Recorded::open(&out.path()), Err(RecordedError::NoRow(_)))),
            _ => assert_eq!(read(&out.path()), (index, index, false)),
        });
        assert_eq!(read(&out.path()), (ROWS, ROWS, false));
        directory.finish(&outcome.record).unwrap();
        assert_eq!((read(&out.path()), lost), ((ROWS, ROWS, true), Vec::new()));
        let names: Vec<_> = std::fs::read_dir(out.path()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_panic_loses_no_row_before_it() {
        let out = Out::new();
        let mut directory = out.reserve();
        let panicked = catch_unwind(AssertUnwindSafe(|| run(&mut directory, |index| assert!(index < 2))));
        assert!(panicked.is_err());
        drop(directory);
        assert_eq!(read(&out.path()), (2, 2, false));
    }

    #[test]
    fn a_run_without_a_row_leaves_nothing() {
        let out = Out::new();
        drop(out.reserve());
        assert!(!out.path().exists());
        let directory = out.reserve();
        let (outcome, _) = run(&mut unexamined(), |_| ());
        let none = RunRecord { rows: Vec::new(), ..outcome.record };
        assert_eq!(directory.finish(&none).unwrap(), None);
        assert!(!out.path().exists());
    }

    /// A directory for a run that is not examined.
    fn unexamined() -> RunDirectory {
        let place = tempfile::tempdir().unwrap();
        RunDirectory::reserve(Some(place.path()), "t", "x").unwrap()
    }

    /// As after SIGKILL between the two writes, or within the first.
    #[test]
    fn a_log_ahead_of_its_record_is_read_as_far_as_the_record_goes() {
        let out = Out::new();
        let path = out.path();
        let mut after_two = None;
        let mut directory = out.reserve();
        let (outcome, _) = run(&mut directory, |index| {
            if index == 2 {
                after_two = Some(std::fs::read(path.join(RECORD)).unwrap());
            }
        });
        let whole = directory.finish(&outcome.record).unwrap().unwrap();
        let log = std::fs::read(path.join(FILE_NAME)).unwrap();
        let ended = std::fs::read(&whole).unwrap();
        std::fs::write(&whole, after_two.unwrap()).unwrap();
        assert_eq!(read(&path), (2, 2, false));
        let cut = &log[..log.len() - 1];
        std::fs::write(path.join(FILE_NAME), cut).unwrap();
        assert_eq!(read(&path), (2, 2, false));
        // In a run that ended it is damage.
        std::fs::write(&whole, ended).unwrap();
        let mut recorded = Recorded::open(&path).unwrap();
        let read: Result<Vec<_>, _> = (0..ROWS).map(|_| recorded.next_row()).collect();
        assert!(matches!(read, Err(RecordedError::Log(..))));
    }
}
