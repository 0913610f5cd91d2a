//! A file that is there whole or not at all, whatever ends this program meanwhile.
//!
//! ```text
//!   create ── a file without a name, in the directory that it will be in     (O_TMPFILE)
//!      │        where the file system has none: NAME.PID.part, removed if it is dropped
//!   write ──  as any file
//!      │
//!   finish ── on the disk ── its name ── the directory on the disk
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::exit::{Class, Classified};

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and there is no other.
    Refused,
    /// It stays until the other is whole.
    Replaced,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum WholeFileError {
    /// There is one by that name.
    #[error("{} is there already: name another file, or remove that one", .0.display())]
    Exists(PathBuf),
    /// There is something by that name that no file may replace: a directory, a device.
    #[error("{} is no regular file: name another file", .0.display())]
    NotRegular(PathBuf),
    /// The system refuses.
    #[error("{attempt} {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
}

impl Classified for WholeFileError {
    fn class(&self) -> Class {
        match self {
            Self::Exists(_) | Self::NotRegular(_) => Class::Mistake,
            Self::Io { source, .. } => Class::of_named_file(source),
        }
    }
}

impl WholeFileError {
    /// What the system answered, for who names the file.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => source,
            Self::Exists(_) => io::ErrorKind::AlreadyExists.into(),
            Self::NotRegular(_) => io::ErrorKind::InvalidInput.into(),
        }
    }
}

/// A file in the making.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    path: PathBuf,
    existing: Existing,
    /// The name that it has meanwhile, if it has one.
    part: Option<PathBuf>,
}

impl WholeFile {
    /// Begins a file that will be called `path`: what would be in its way is found now.
    ///
    /// # Errors
    /// [`WholeFileError`].
    pub fn create(path: &Path, existing: Existing) -> Result<Self, WholeFileError> {
        match (path.symlink_metadata(), existing) {
            (Ok(_), Existing::Refused) => return Err(WholeFileError::Exists(path.to_owned())),
            (Ok(there), Existing::Replaced) if !there.is_file() => {
                return Err(WholeFileError::NotRegular(path.to_owned()));
            }
            _ => {}
        }
        let failed =
            |source: io::Error| WholeFileError::Io { attempt: "making", path: path.to_owned(), source };
        let (file, part) = match nameless(directory_of(path)) {
            Ok(file) => (file, None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let part = part_of(path);
                let file = OpenOptions::new().write(true).create_new(true).open(&part);
                (file.map_err(failed)?, Some(part))
            }
            Err(errno) => return Err(failed(errno.into())),
        };
        Ok(Self { file, path: path.to_owned(), existing, part })
    }

    /// The file, to be written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, when all of it is on the disk.
    ///
    /// # Errors
    /// The system refuses, or somebody took the name meanwhile: then there is no file.
    pub fn finish(mut self) -> Result<(), WholeFileError> {
        let named = match self.file.sync_all() {
            Ok(()) => self.name(),
            Err(source) => return Err(self.failed("writing", source)),
        };
        match named {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(WholeFileError::Exists(self.path.clone())),
            Err(errno) => return Err(self.failed("naming", errno.into())),
        }
        let synced = File::open(directory_of(&self.path)).and_then(|directory| directory.sync_all());
        synced.map_err(|source| self.failed("writing", source))
    }

    /// Why it could not be written to.
    pub fn failed(&self, attempt: &'static str, source: io::Error) -> WholeFileError {
        WholeFileError::Io { attempt, path: self.path.clone(), source }
    }

    fn name(&mut self) -> Result<(), Errno> {
        if self.part.is_none() {
            match link(&self.file, &self.path) {
                Err(Errno::EXIST) if self.existing == Existing::Replaced => {
                    // Only a rename replaces what is there, and it needs a name to begin with.
                    let part = part_of(&self.path);
                    link(&self.file, &part)?;
                    self.part = Some(part);
                }
                done => return done,
            }
        }
        let Some(part) = &self.part else { return Ok(()) };
        match self.existing {
            Existing::Replaced => rustix::fs::rename(part, &self.path)?,
            // A rename would replace.
            Existing::Refused => {
                rustix::fs::linkat(CWD, part, CWD, &self.path, AtFlags::empty())?;
                rustix::fs::unlink(part)?;
            }
        }
        self.part = None;
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // Nothing more can be done about it.
            let _ = fs::remove_file(part);
        }
    }
}

/// A file that goes with its last descriptor unless it is given a name.
fn nameless(directory: &Path) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)).map(File::from)
}

/// Gives a file without a name one that nobody has. By /proc: AT_EMPTY_PATH needs a capability before Linux 6.10.
fn link(file: &File, name: &Path) -> Result<(), Errno> {
    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, file, CWD, name, AtFlags::SYMLINK_FOLLOW)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// As `create` makes one where the file system has no files without names.
    fn named(path: &Path, existing: Existing) -> WholeFile {
        let part = part_of(path);
        WholeFile {
            file: File::create_new(&part).unwrap(),
            path: path.to_owned(),
            existing,
            part: Some(part),
        }
    }

    fn unnamed(path: &Path, existing: Existing) -> WholeFile {
        WholeFile::create(path, existing).unwrap()
    }

    #[test]
    fn a_file_is_there_whole_or_not_at_all() {
        for make in [named, unnamed] {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("f");
            let mut dropped = make(&path, Existing::Refused);
            dropped.write_all(b"half").unwrap();
            drop(dropped);
            assert_eq!(names(place.path()), [""; 0]);
            let mut file = make(&path, Existing::Refused);
            file.write_all(b"first").unwrap();
            assert!(!path.exists());
            file.finish().unwrap();
            let mut file = make(&path, Existing::Replaced);
            file.write_all(b"second").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"first");
            file.finish().unwrap();
            assert_eq!((names(place.path()), fs::read(&path).unwrap()), (vec!["f".into()], b"second".into()));
        }
    }

    #[test]
    fn what_is_in_the_way_is_found_before_anything_is_written() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("f");
        fs::write(&path, "here").unwrap();
        let exists = WholeFile::create(&path, Existing::Refused).unwrap_err();
        assert!(matches!(exists, WholeFileError::Exists(_)), "{exists}");
        let directory = WholeFile::create(place.path(), Existing::Replaced).unwrap_err();
        assert!(matches!(directory, WholeFileError::NotRegular(_)), "{directory}");
        let nowhere = WholeFile::create(&path.join("f"), Existing::Replaced).unwrap_err();
        assert!(matches!(nowhere, WholeFileError::Io { .. }), "{nowhere}");
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_is_not_replaced() {
        for make in [named, unnamed] {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("f");
            let file = make(&path, Existing::Refused);
            fs::write(&path, "theirs").unwrap();
            assert!(matches!(file.finish(), Err(WholeFileError::Exists(_))));
            assert_eq!((names(place.path()), fs::read(&path).unwrap()), (vec!["f".into()], b"theirs".into()));
        }
    }
}
