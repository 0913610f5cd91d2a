//! A record in its own directory, which is reserved before the work begins. The record is rewritten while the work goes on.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::place::{Place, PlaceError};
use lab::NotKept;
use program::whole_file::{Existing, WholeFile, WholeFileError};

/// A record that is rewritten: at any time the file is complete, or absent.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    /// Whether a file of its name is replaced: not before the first write, when it is another process's.
    existing: Existing,
    place: Place,
}

impl RecordFile {
    /// Reserves a record `file` in the directory `out`, or in a new one. Neither it nor the files `beside` it may exist.
    pub fn reserve(
        out: Option<&Path>,
        started_at: &str,
        name: &str,
        file: &str,
        beside: &[&str],
    ) -> Result<Self, PlaceError> {
        let place = Place::reserve(out, started_at, name, &[&[file], beside].concat())?;
        let path = place.path().join(file);
        // A trial: it is dropped.
        match WholeFile::create(&path, Existing::Refused) {
            Ok(_) => Ok(Self { path, existing: Existing::Refused, place }),
            Err(WholeFileError::Exists(path)) => Err(PlaceError::Taken(path)),
            Err(error) => Err(PlaceError::Write { path, source: error.into_io() }),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Keeps the directory, also without a record.
    pub fn keep_place(&mut self) {
        self.place.keep();
    }

    /// Writes the record to the disk, in place of the last one.
    ///
    /// # Errors
    /// [`NotKept`]; the last one stays.
    pub fn put(&mut self, json: &str) -> Result<(), NotKept> {
        let written = self.write(json);
        // A file that got its name is ours, even if syncing the directory failed.
        let ours = match &written {
            Ok(()) => true,
            Err(WholeFileError::Exists(_) | WholeFileError::NotRegular(_)) => false,
            Err(WholeFileError::Io { .. }) => self.path.is_file(),
        };
        if ours {
            self.existing = Existing::Replaced;
            self.place.keep();
        }
        written.map_err(|error| NotKept { path: self.path.clone(), source: error.into_io() })
    }

    fn write(&self, json: &str) -> Result<(), WholeFileError> {
        let mut file = WholeFile::create(&self.path, self.existing)?;
        file.write_all(json.as_bytes()).map_err(|source| file.failed("writing", source))?;
        file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_there_after_each_write_and_its_directory_before() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let reserve = || RecordFile::reserve(Some(&out), "t", "n", "record.json", &["log"]);
        drop(reserve().unwrap());
        assert!(!out.exists(), "nothing was written");
        let mut record = reserve().unwrap();
        assert!(matches!(reserve(), Err(PlaceError::Busy(_))));
        for text in ["{}", "{\"more\": 1}"] {
            record.put(text).unwrap();
            assert_eq!(std::fs::read_to_string(record.path()).unwrap(), text);
        }
        drop(record);
        assert!(matches!(reserve(), Err(PlaceError::Taken(_))));
        std::fs::rename(out.join("record.json"), out.join("log")).unwrap();
        assert!(matches!(reserve(), Err(PlaceError::Taken(path)) if path.ends_with("log")));
    }

    #[test]
    fn a_file_of_another_process_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = RecordFile::reserve(Some(dir.path()), "t", "n", "record.json", &[]).unwrap();
        std::fs::write(record.path(), "theirs").unwrap();
        for _ in 0..2 {
            let refused = record.put("ours").unwrap_err();
            assert_eq!(refused.source.kind(), std::io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read_to_string(record.path()).unwrap(), "theirs");
        }
        std::fs::remove_file(record.path()).unwrap();
        record.put("ours").unwrap();
    }
}
