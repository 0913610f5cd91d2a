//! The unit tests that need something of the host: those of every crate's library that are marked
//!
//! ```text
//! #[test]
//! #[ignore = "needs: Kvm, Zram"]
//! ```
//!
//! They stand beside what they test, and use what is private there. libtest knows no needs: it counts them as ignored,
//! whatever the host has. Here each is run by its own binary, if the host has what it needs; a need is the name of a
//! [`Need`]. One that is ignored for another reason fails.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use harness::Test;
use tests::host::Need;

/// How such a test begins the reason for which it is ignored.
const NEEDS: &str = "needs: ";

/// A library's tests, built.
struct Library {
    name: String,
    /// Where Cargo would run it.
    directory: PathBuf,
    binary: PathBuf,
}

fn main() -> ExitCode {
    let tests = libraries().iter().flat_map(tests_of).collect();
    harness::main("the libraries that need the host", tests)
}

/// Builds the libraries as they are built beside this target, in its profile. Cargo holds no lock while it runs tests.
fn libraries() -> Vec<Library> {
    let own = std::env::current_exe().unwrap();
    // target/PROFILE/deps/units-…; the dev profile's directory has a name of its own.
    let profile = own.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    let profile = if profile == "debug" { "dev" } else { &profile };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["test", "--locked", "--workspace", "--lib", "--no-run", "--profile", profile])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // It says what it builds: little or nothing beside `cargo test --workspace`, much for the first time alone.
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo can be started");
    assert!(
        built.status.success(),
        "the libraries' tests do not build: see `cargo test --workspace --lib --no-run`"
    );
    String::from_utf8_lossy(&built.stdout).lines().filter_map(library).collect()
}

/// The library that a line of Cargo's is about.
fn library(line: &str) -> Option<Library> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    Some(Library {
        name: text(&message["target"]["name"])?,
        directory: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
        binary: text(&message["executable"])?.into(),
    })
}

impl Library {
    /// What its binary prints.
    fn says(&self, arguments: &[&str]) -> (bool, String) {
        let _waiting = harness::waiting(format!("{} {arguments:?}", self.name));
        let output =
            Command::new(&self.binary).args(arguments).current_dir(&self.directory).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

/// A library's ignored tests, each with what it needs.
fn tests_of(library: &Library) -> Vec<Test> {
    let (_, list) = library.says(&["--list", "--ignored", "--format", "terse"]);
    let names: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    if names.is_empty() {
        return Vec::new();
    }
    // Asked for by name without `--ignored`, they are not run, and the reason is said.
    let (_, said) = library.says(&[&["--exact"], &names[..]].concat());
    names.iter().map(|name| test(library, name, reason(&said, name))).collect()
}

/// Of `test NAME ... ignored, REASON`.
fn reason<'a>(said: &'a str, name: &str) -> &'a str {
    let start = format!("test {name} ... ignored");
    let rest = said.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_default();
    rest.trim_start_matches(", ")
}

fn test(library: &Library, name: &str, reason: &str) -> Test {
    let path = format!("units::{}::{name}", library.name);
    let needs = reason.strip_prefix(NEEDS).map(|needs| needs.split(", ").map(Need::named).collect());
    let Some(Some(needs)) =
        needs.map(|needs: Vec<Option<Need>>| needs.into_iter().collect::<Option<Vec<_>>>())
    else {
        let text = format!("ignored for {reason:?}, and not for something that it needs of the host");
        return Test::new(&path, &[] as &[Need], move || panic!("{text}"));
    };
    let (library, name) = (
        Library {
            name: library.name.clone(),
            directory: library.directory.clone(),
            binary: library.binary.clone(),
        },
        name.to_owned(),
    );
    Test::new(&path, &needs, move || {
        let (succeeded, said) = library.says(&["--exact", "--ignored", &name]);
        assert!(succeeded && said.contains("\ntest result: ok. 1 passed; 0 failed; 0 ignored;"), "{said}");
    })
}
