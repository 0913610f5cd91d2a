//! A record in a directory of its own, written when the work is over; its place is reserved before.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::place::{Place, PlaceError};
use crate::exit::{Class, Classified};
use crate::whole_file::{Existing, WholeFile, WholeFileError};

/// The record could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: free space there and try again, or take the record from `--json`", path.display())]
pub struct RecordFileError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Classified for RecordFileError {
    fn class(&self) -> Class {
        Class::Fault
    }
}

/// A record in the making.
#[derive(Debug)]
pub struct RecordFile {
    file: WholeFile,
    path: PathBuf,
    started_at: String,
    place: Place,
}

impl RecordFile {
    /// Reserves a record called `file` in the directory `out`, or in one named after the time and what is recorded.
    ///
    /// # Errors
    /// [`PlaceError`].
    pub fn reserve(out: Option<&Path>, started_at: &str, name: &str, file: &str) -> Result<Self, PlaceError> {
        let place = Place::reserve(out, started_at, name, &[file])?;
        let path = place.path().join(file);
        match WholeFile::create(&path, Existing::Refused) {
            Ok(file) => Ok(Self { file, path, started_at: started_at.to_owned(), place }),
            Err(WholeFileError::Exists(path)) => Err(PlaceError::Taken(path)),
            Err(error) => Err(PlaceError::Write { path, source: error.into_io() }),
        }
    }

    /// When it was reserved.
    pub fn started_at(&self) -> &str {
        &self.started_at
    }

    /// Writes it, and returns its path.
    ///
    /// # Errors
    /// [`RecordFileError`]; then there is none.
    pub fn write(mut self, json: &str) -> Result<PathBuf, RecordFileError> {
        let written = self
            .file
            .write_all(json.as_bytes())
            .and_then(|()| self.file.finish().map_err(WholeFileError::into_io));
        match written {
            Ok(()) => {
                self.place.keep();
                Ok(self.path)
            }
            Err(source) => Err(RecordFileError { path: self.path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_there_when_it_is_written_and_its_place_before() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let reserve = || RecordFile::reserve(Some(&out), "t", "n", "record.json");
        drop(reserve().unwrap());
        assert!(!out.exists(), "nothing was written");
        let record = reserve().unwrap();
        assert!(matches!(reserve(), Err(PlaceError::Busy(_))));
        let path = record.write("{}").unwrap();
        assert_eq!(
            (path.as_path(), std::fs::read(&path).unwrap()),
            (&*out.join("record.json"), b"{}".into())
        );
        assert!(matches!(reserve(), Err(PlaceError::Taken(_))));
    }
}
