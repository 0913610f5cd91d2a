//! The run directory: one for each run, never overwritten. It holds `run.json` and, where a row ran, `events.log`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::events::{FILE_NAME, Spool};
use crate::exit::{Class, Classified};

/// Where run directories go unless told otherwise.
const PARENT: &str = "zapscope-runs";

/// The run directory could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: choose a place with `--out DIR`")]
pub struct DirectoryError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Classified for DirectoryError {
    fn class(&self) -> Class {
        Class::of_named_file(&self.source)
    }
}

/// Writes `run.json` and the event log into a directory of their own and returns the record's path: `out` if given,
/// else one named after the time and the scenario.
///
/// # Errors
/// [`DirectoryError`]; a directory that already holds a run is one.
pub fn write(
    out: Option<&Path>,
    started_at: &str,
    name: &str,
    json: &str,
    events: &mut Spool,
) -> Result<PathBuf, DirectoryError> {
    let path = write_as(out, started_at, name, "run.json", json)?;
    if !events.is_empty() {
        fill(&path.with_file_name(FILE_NAME), |file| events.write_to(file))?;
    }
    Ok(path)
}

/// The same of a record that is called `file`.
///
/// # Errors
/// As [`write()`].
pub fn write_as(
    out: Option<&Path>,
    started_at: &str,
    name: &str,
    file: &str,
    json: &str,
) -> Result<PathBuf, DirectoryError> {
    let directory = match out {
        Some(directory) => {
            let failed = |source| DirectoryError { path: directory.to_owned(), source };
            fs::create_dir_all(directory).map_err(failed)?;
            directory.to_owned()
        }
        None => fresh(Path::new(PARENT), &format!("{}-{name}", started_at.replace(':', "")))?,
    };
    let path = directory.join(file);
    fill(&path, |file| io::Write::write_all(file, json.as_bytes()))?;
    Ok(path)
}

/// Makes a file that did not exist.
fn fill(path: &Path, with: impl FnOnce(&mut fs::File) -> io::Result<()>) -> Result<(), DirectoryError> {
    let create = fs::OpenOptions::new().write(true).create_new(true).open(path);
    let filled = create.and_then(|mut file| with(&mut file));
    filled.map_err(|source| DirectoryError { path: path.to_owned(), source })
}

/// Makes a directory that did not exist: two runs in one second get two.
fn fresh(parent: &Path, name: &str) -> Result<PathBuf, DirectoryError> {
    let failed = |path: &Path, source| DirectoryError { path: path.to_owned(), source };
    fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
    for attempt in 1.. {
        let path = match attempt {
            1 => parent.join(name),
            _ => parent.join(format!("{name}-{attempt}")),
        };
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1_000 => {}
            Err(source) => return Err(failed(&path, source)),
        }
    }
    unreachable!("the loop ends by returning")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_run_overwrites_another() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (fresh(dir.path(), "x").unwrap(), fresh(dir.path(), "x").unwrap());
        assert_ne!(a, b);
        let out = dir.path().join("out");
        write(Some(&out), "t", "n", "{}", &mut Spool::default()).unwrap();
        let error = write(Some(&out), "t", "n", "{}", &mut Spool::default()).unwrap_err();
        assert!(error.to_string().contains("--out"), "{error}");
    }
}
