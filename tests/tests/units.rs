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

use std::process::{Command, ExitCode};

use harness::Test;
use tests::built::{Built, build};
use tests::host::Need;

/// How such a test begins the reason for which it is ignored.
const NEEDS: &str = "needs: ";

fn main() -> ExitCode {
    let libraries = build(&["--workspace", "--lib"]).unwrap();
    let tests = libraries.iter().flat_map(tests_of).collect();
    harness::main("the libraries that need the host", tests)
}

/// What a library's test binary prints.
fn says(library: &Built, arguments: &[&str]) -> (bool, String) {
    let _waiting = harness::waiting(format!("{} {arguments:?}", library.name));
    let output =
        Command::new(&library.binary).args(arguments).current_dir(&library.directory).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// A library's ignored tests, each with what it needs.
fn tests_of(library: &Built) -> Vec<Test> {
    let (_, list) = says(library, &["--list", "--ignored", "--format", "terse"]);
    let names: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    if names.is_empty() {
        return Vec::new();
    }
    // Asked for by name without `--ignored`, they are not run, and the reason is said.
    let (_, said) = says(library, &[&["--exact"], &names[..]].concat());
    names.iter().map(|name| test(library, name, reason(&said, name))).collect()
}

/// Of `test NAME ... ignored, REASON`.
fn reason<'a>(said: &'a str, name: &str) -> &'a str {
    let start = format!("test {name} ... ignored");
    let rest = said.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_default();
    rest.trim_start_matches(", ")
}

fn test(library: &Built, name: &str, reason: &str) -> Test {
    let path = format!("units::{}::{name}", library.name);
    let needs = reason.strip_prefix(NEEDS).map(|needs| needs.split(", ").map(Need::named).collect());
    let Some(Some(needs)) =
        needs.map(|needs: Vec<Option<Need>>| needs.into_iter().collect::<Option<Vec<_>>>())
    else {
        let text = format!("ignored for {reason:?}, and not for something that it needs of the host");
        return Test::new(&path, &[] as &[Need], move || panic!("{text}"));
    };
    let (library, name) = (library.clone(), name.to_owned());
    Test::new(&path, &needs, move || {
        let (succeeded, said) = says(&library, &["--exact", "--ignored", &name]);
        assert!(succeeded && said.contains("\ntest result: ok. 1 passed; 0 failed; 0 ignored;"), "{said}");
    })
}
