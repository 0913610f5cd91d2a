//! Test binaries of this workspace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A test binary.
#[derive(Clone, Debug)]
pub struct Built {
    /// The name of its target.
    pub name: String,
    /// Where Cargo would run it.
    pub directory: PathBuf,
    /// Its file.
    pub binary: PathBuf,
}

/// Builds the tests that these arguments of `cargo test` choose, in the profile of the running binary. Cargo holds no lock
/// while it runs tests. The error is why there are none.
pub fn build(arguments: &[&str]) -> Result<Vec<Built>, String> {
    let own = std::env::current_exe().map_err(|why| format!("this binary's path: {why}"))?;
    // target/PROFILE/deps/NAME-…; the dev profile's directory has a name of its own.
    let profile = own.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let profile = if profile == "debug" { "dev" } else { &profile };
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "--locked", "--no-run", "--profile", profile])
        .args(["--message-format", "json-render-diagnostics"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // Cargo says what it builds: little beside `cargo test --workspace`, much for the first time alone.
        .stderr(Stdio::inherit())
        .output()
        .map_err(|why| format!("cargo: {why}"))?;
    if !built.status.success() {
        return Err(format!("cargo test {}: {}", arguments.join(" "), built.status));
    }
    Ok(String::from_utf8_lossy(&built.stdout).lines().filter_map(of_line).collect())
}

/// The binary that a line of Cargo's is about.
fn of_line(line: &str) -> Option<Built> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(Built {
        name: message["target"]["name"].as_str()?.to_owned(),
        directory: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
        binary: message["executable"].as_str()?.into(),
    })
}
