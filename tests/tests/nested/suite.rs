//! The suite that runs in the rig: the test binary `whole`, with the shared libraries it needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Trouble;

/// The binary `whole`, built.
pub struct Suite {
    binary: PathBuf,
}

/// Builds it in this binary's own profile.
pub fn build() -> Result<Suite, Trouble> {
    let built = tests::built::build(&["--package", "tests", "--test", "whole"]).map_err(Trouble::Broken)?;
    let whole = built.into_iter().find(|one| one.name == "whole");
    let whole = whole.ok_or_else(|| Trouble::Broken("cargo built no executable `whole`".to_owned()))?;
    Ok(Suite { binary: whole.binary })
}

impl Suite {
    /// The names of all its tests.
    pub fn names(&self) -> Result<Vec<String>, Trouble> {
        let list =
            Command::new(&self.binary).arg("--list").output().map_err(Trouble::broken("whole --list"))?;
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        let names: Vec<String> =
            text.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect();
        if names.is_empty() {
            return Err(Trouble::Broken("`whole --list` names no tests".to_owned()));
        }
        Ok(names)
    }

    /// The binary's content.
    pub fn content(&self, scratch: &Path) -> Result<Vec<u8>, Trouble> {
        slim(&self.binary, &scratch.join("whole"))
    }

    /// The dynamic linker and the shared libraries that it, and this binary, are loaded with, by absolute path.
    pub fn libraries(&self) -> Result<Vec<PathBuf>, Trouble> {
        let ldd = Command::new("ldd").arg(&self.binary).output().map_err(Trouble::broken("ldd"))?;
        let text = String::from_utf8_lossy(&ldd.stdout).into_owned();
        let paths: Vec<PathBuf> =
            text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
        if paths.is_empty() {
            return Err(Trouble::Broken("ldd names no libraries of `whole`".to_owned()));
        }
        Ok(paths)
    }
}

/// A binary's content without its debug information, which is four fifths of it; whole where there is no
/// `strip`.
pub fn slim(binary: &Path, scratch: &Path) -> Result<Vec<u8>, Trouble> {
    let stripped = Command::new("strip").arg("--strip-debug").arg("-o").args([scratch, binary]).output();
    let slim = if stripped.is_ok_and(|output| output.status.success()) { scratch } else { binary };
    std::fs::read(slim).map_err(Trouble::broken(slim.display()))
}
