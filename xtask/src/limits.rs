//! Limits of size: lines of a file, of a function, and lines of code of a crate.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{functions, lines_of_code, read, without_tests};

const FILE: usize = 500;
const FUNCTION: usize = 60;
/// Lines with code that is compiled into the crate: neither comments nor tests.
const CRATE: usize = 9_000;

/// What exceeds a limit below the directory of a crate, as text.
pub fn of_crate(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for file in files(directory) {
        let name = file.strip_prefix(directory).unwrap_or(&file).display();
        let text = fs::read_to_string(&file).unwrap_or_default();
        let lines = text.lines().count();
        if lines > FILE {
            found.push(format!("{name} has {lines} lines"));
        }
        let mut all = Vec::new();
        functions(&read(&file), &mut all);
        for function in all {
            let lines = function.lines.clone().count();
            if lines > FUNCTION {
                let (first, function) = (function.lines.start(), function.name);
                found.push(format!("{name}:{first}: the function {function} has {lines} lines"));
            }
        }
    }
    let code = code(directory);
    if code > CRATE {
        found.push(format!("{code} lines of code"));
    }
    found
}

/// Lines of code of a crate.
pub fn code(directory: &Path) -> usize {
    let source = directory.join("src");
    let is_for_tests = |file: &Path| {
        let below = file.strip_prefix(&source).unwrap_or(file).with_extension("");
        below.components().any(|part| ["tests", "testing"].iter().any(|&name| part.as_os_str() == name))
    };
    let of_file = |file: PathBuf| {
        let mut lines = BTreeSet::new();
        lines_of_code(&without_tests(&read(&file)), &mut lines);
        lines.len()
    };
    files(&source).into_iter().filter(|file| !is_for_tests(file)).map(of_file).sum()
}

/// The Rust files below a directory, without those of crates and targets below it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.join("Cargo.toml").exists() && !path.ends_with("target") {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
    found
}
