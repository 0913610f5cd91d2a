//! The crates of this workspace, as `cargo metadata` has them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate of this workspace.
pub struct Crate {
    pub name: String,
    /// Its directory, from the root of the workspace.
    pub directory: PathBuf,
    pub description: String,
    /// The crates of this workspace that it is built from; those of its tests are left out.
    pub needs: BTreeSet<String>,
}

/// The cargo that runs this program.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Every crate after those that it is built from.
pub fn crates(root: &Path) -> Result<Vec<Crate>, String> {
    let output = Command::new(cargo())
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .map_err(|why| format!("cargo metadata: {why}"))?;
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)))?;
    let packages = metadata["packages"].as_array().ok_or("cargo metadata names no packages")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let of_package = |package: &Value| {
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let directory = manifest.parent().unwrap_or(root);
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let built_from = dependencies.filter(|one| one["kind"] != "dev").map(|one| text(&one["name"]));
        Crate {
            name: text(&package["name"]),
            directory: directory.strip_prefix(root).unwrap_or(directory).to_owned(),
            description: text(&package["description"]),
            needs: built_from.filter(|name| names.contains(name)).collect(),
        }
    };
    Ok(sorted(packages.iter().map(of_package).collect()))
}

/// By how many crates deep each is built, then by name.
fn sorted(mut crates: Vec<Crate>) -> Vec<Crate> {
    let (mut sorted, mut known) = (Vec::new(), BTreeSet::new());
    while !crates.is_empty() {
        let (mut next, rest): (Vec<Crate>, Vec<Crate>) =
            crates.into_iter().partition(|one| one.needs.is_subset(&known));
        assert!(!next.is_empty(), "Cargo allows no circle of crates");
        next.sort_by(|a, b| a.name.cmp(&b.name));
        known.extend(next.iter().map(|one| one.name.clone()));
        sorted.extend(next);
        crates = rest;
    }
    sorted
}
