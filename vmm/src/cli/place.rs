//! The directory for a command's results: made and locked before the work begins, and removed if nothing is kept in it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use guest_mem::remedy::{self, Asked};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use program::exit::{Class, Classified};

/// The directory for results without `--out`.
const PARENT: &str = "zapscope-runs";

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("cannot write {}{}", path.display(), remedy::after_io(Asked::Place, source))]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is no directory: choose another with `--out DIR`", .0.display())]
    NoDirectory(PathBuf),
    #[error("{} is there already: choose another directory with `--out DIR`, or remove that one", .0.display())]
    Taken(PathBuf),
    #[error("another zapscope is writing into {}: choose another directory with `--out DIR`", .0.display())]
    Busy(PathBuf),
}

impl Classified for PlaceError {
    fn class(&self) -> Class {
        match self {
            Self::Write { source, .. } => Class::of_named_file(source),
            Self::NoDirectory(_) | Self::Taken(_) | Self::Busy(_) => Class::Mistake,
        }
    }
}

/// A directory that is reserved for this process.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    // Dropped before the lock: no other process gets a directory that is about to be removed.
    made: Made,
    /// The lock, which the kernel releases when the process ends.
    _lock: File,
    kept: bool,
}

impl Place {
    /// Reserves `out`, or a new directory named by the time and `name`. None of `files` may exist.
    ///
    /// # Errors
    /// [`PlaceError`]; the directories that were made are removed.
    pub fn reserve(
        out: Option<&Path>,
        started_at: &str,
        name: &str,
        files: &[&str],
    ) -> Result<Self, PlaceError> {
        let mut made = Made::default();
        let path = match out {
            Some(out) => made.all_of(out).map(|()| out.to_owned())?,
            None => made.fresh(Path::new(PARENT), &format!("{}-{name}", started_at.replace(':', "")))?,
        };
        let lock = open(&path)?;
        for file in files {
            let file = path.join(file);
            if file.symlink_metadata().is_ok() {
                return Err(PlaceError::Taken(file));
            }
        }
        Ok(Self { path, made, _lock: lock, kept: false })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the directory.
    pub fn keep(&mut self) {
        self.kept = true;
        self.made.0.clear();
    }

    /// Whether it is kept.
    pub fn is_kept(&self) -> bool {
        self.kept
    }
}

/// Opens a directory and locks it.
fn open(path: &Path) -> Result<File, PlaceError> {
    let directory = File::open(path).map_err(|source| failed(path, source))?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(PlaceError::Busy(path.to_owned())),
        // A file system without locks: of two commands that begin at once, one fails to make its files.
        _ => Ok(directory),
    }
}

fn failed(path: &Path, source: io::Error) -> PlaceError {
    match source.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            PlaceError::NoDirectory(path.to_owned())
        }
        _ => PlaceError::Write { path: path.to_owned(), source },
    }
}

/// Directories that were made, outermost first. When dropped it removes those that are empty.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Made {
    /// Makes a directory and its missing parents.
    fn all_of(&mut self, path: &Path) -> Result<(), PlaceError> {
        let missing: Vec<_> = path
            .ancestors()
            .take_while(|above| !above.as_os_str().is_empty() && above.symlink_metadata().is_err())
            .collect();
        for above in missing.into_iter().rev() {
            match fs::create_dir(above) {
                Ok(()) => self.0.push(above.to_owned()),
                // Another process has made it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && above.is_dir() => {}
                Err(source) => return Err(failed(above, source)),
            }
        }
        if path.is_dir() { Ok(()) } else { Err(PlaceError::NoDirectory(path.to_owned())) }
    }

    /// Makes a directory that did not exist, with a number if the name is taken.
    fn fresh(&mut self, parent: &Path, name: &str) -> Result<PathBuf, PlaceError> {
        self.all_of(parent)?;
        let mut attempt = 1;
        loop {
            let path = match attempt {
                1 => parent.join(name),
                _ => parent.join(format!("{name}-{attempt}")),
            };
            match fs::create_dir(&path) {
                Ok(()) => {
                    self.0.push(path.clone());
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1_000 => attempt += 1,
                Err(source) => return Err(PlaceError::Write { path, source }),
            }
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // Fails if it is not empty.
            let _ = fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserve(out: &Path) -> Result<Place, PlaceError> {
        Place::reserve(Some(out), "t", "n", &["record.json"])
    }

    #[test]
    fn equal_names_get_different_directories() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Made::default();
        let [a, b] = [0, 1].map(|_| made.fresh(&dir.path().join("runs"), "x").unwrap());
        assert_ne!(a, b);
        drop(made);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_is_locked_and_removed_unless_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        let first = reserve(&out).unwrap();
        assert!(matches!(reserve(&out), Err(PlaceError::Busy(_))));
        drop(first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut kept = reserve(&out).unwrap();
        kept.keep();
        drop(kept);
        assert!(out.is_dir());
        // A directory that existed before stays.
        drop(reserve(&out).unwrap());
        assert!(out.is_dir());
    }

    #[test]
    fn an_obstacle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("record.json"), "{}").unwrap();
        let taken = reserve(dir.path()).unwrap_err();
        assert!(taken.to_string().contains("record.json") && taken.to_string().contains("--out"), "{taken}");
        for path in [dir.path().join("record.json"), dir.path().join("record.json/below")] {
            let error = reserve(&path).unwrap_err();
            assert!(matches!(error, PlaceError::NoDirectory(_)), "{error}");
        }
        std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
        reserve(&dir.path().join("dangling")).unwrap_err();
        reserve(Path::new("/proc/zapscope")).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
