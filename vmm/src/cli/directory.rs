//! The run directory: one for each run, never overwritten.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

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

/// Writes `run.json` into a directory of its own and returns its path: `out` if given, else one named after
/// the time and the scenario.
///
/// # Errors
/// [`DirectoryError`]; a directory that already holds a run is one.
pub fn write(
    out: Option<&Path>,
    started_at: &str,
    name: &str,
    json: &str,
) -> Result<PathBuf, DirectoryError> {
    write_as(out, started_at, name, "run.json", json)
}

/// The same of a record that is called `file`.
///
/// # Errors
/// As [`write`].
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
    let create = fs::OpenOptions::new().write(true).create_new(true).open(&path);
    create
        .and_then(|mut file| io::Write::write_all(&mut file, json.as_bytes()))
        .map_err(|source| DirectoryError { path: path.clone(), source })?;
    Ok(path)
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
        write(Some(&out), "t", "n", "{}").unwrap();
        let error = write(Some(&out), "t", "n", "{}").unwrap_err();
        assert!(error.to_string().contains("--out"), "{error}");
    }
}
