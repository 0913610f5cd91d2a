//! A file that is complete or absent, also if this program is killed meanwhile.
//!
//! ```text
//!   create ── a file without a name in the same directory (O_TMPFILE)
//!      │        on file systems without it: NAME.PID.part, removed when it is dropped
//!   write ──  as any file
//!      │
//!   finish ── synced to the disk ── named ── the directory synced
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::exit::{Class, Classified};

/// What to do if a file of this name exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fail.
    Refused,
    /// Replace it when the new one is complete.
    Replaced,
}

/// The file was not made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum WholeFileError {
    #[error("{} is there already: name another file, or remove that one", .0.display())]
    Exists(PathBuf),
    #[error("{} is no regular file: name another file", .0.display())]
    NotRegular(PathBuf),
    #[error("{attempt} {}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
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
    /// The system's answer, for callers that name the file.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => source,
            Self::Exists(_) => io::ErrorKind::AlreadyExists.into(),
            Self::NotRegular(_) => io::ErrorKind::InvalidInput.into(),
        }
    }
}

/// A file that is being written.
#[derive(Debug)]
pub struct WholeFile {
    file: File,
    path: PathBuf,
    existing: Existing,
    /// Its temporary name, if it has one.
    part: Option<PathBuf>,
}

impl WholeFile {
    /// Begins a file that will be named `path`. Obstacles are found now.
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

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file to the disk, and gives it its name.
    ///
    /// # Errors
    /// The system refused, or the name was taken meanwhile: then there is no file.
    pub fn finish(mut self) -> Result<(), WholeFileError> {
        self.file.sync_all().map_err(|source| self.failed("writing", source))?;
        match self.name() {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(WholeFileError::Exists(self.path.clone())),
            Err(errno) => return Err(self.failed("naming", errno.into())),
        }
        let synced = File::open(directory_of(&self.path)).and_then(|directory| directory.sync_all());
        synced.map_err(|source| self.failed("writing", source))
    }

    /// The error of an attempt on the file.
    pub fn failed(&self, attempt: &'static str, source: io::Error) -> WholeFileError {
        WholeFileError::Io { attempt, path: self.path.clone(), source }
    }

    fn name(&mut self) -> Result<(), Errno> {
        if self.part.is_none() {
            match link(&self.file, &self.path) {
                Err(Errno::EXIST) if self.existing == Existing::Replaced => {
                    // Only a rename replaces a file, and it needs a first name.
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
            // An error here has no remedy.
            let _ = fs::remove_file(part);
        }
    }
}

/// A file without a name, which ends with its last descriptor unless it is named.
fn nameless(directory: &Path) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)).map(File::from)
}

/// Names a file that has no name; fails if the name exists. By /proc: AT_EMPTY_PATH needs a capability before Linux 6.10.
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

    /// As `create` does on a file system without O_TMPFILE.
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
    fn a_file_is_complete_or_absent() {
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
    fn obstacles_are_found_before_anything_is_written() {
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
