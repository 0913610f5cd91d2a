//! The recipes of this workspace. `.ci/run` runs them in order; each can be run by itself: `cargo xtask NAME`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

mod architecture;
mod circles;
mod limits;
mod source;
mod workspace;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use workspace::{Crate, cargo, crates};

type Done = Result<(), String>;

/// Its name, what it proves or does, and how.
struct Recipe(&'static str, &'static str, fn(&Path) -> Done);

/// The recipes that a change must pass, in the order of `cargo xtask ci`.
const CHECKS: [Recipe; 7] = [
    Recipe("format", "the sources are formatted", format),
    Recipe("circles", "no modules import each other in a loop", circles),
    Recipe("limits", "no file, function or crate is too long", limits),
    Recipe("book", "the pages are up to date; the book builds, where there is mdbook", book),
    Recipe(
        "builds",
        "lints, doc and loom, and the tests are built; beside them the nested rig",
        builds_and_rig,
    ),
    Recipe("test", "the command that the README gives for all tests, with the host to itself", test),
    Recipe("memory", "what is resident beside the guest's memory", memory),
];

const OTHERS: [Recipe; 8] = [
    Recipe("lints", "clippy has nothing to say", lints),
    Recipe("doc", "the documentation builds without a warning", doc),
    Recipe("loom", "the sequence protocol in every interleaving", loom),
    Recipe("rig", "the tests of the whole on an emulated AMD host: tests/tests/nested", rig),
    Recipe("bench", "every bench", bench),
    Recipe("mutants", "is each line of the bridge tested? needs cargo-mutants", mutants),
    Recipe("write", "write what is generated: the crates in ARCHITECTURE.md, the scenario reference", write),
    Recipe("size", "lines of code of each crate", size),
];

/// Where the guest's programs are: workspaces of their own.
const GUEST: [&str; 2] = ["--manifest-path", "resources/guest/Cargo.toml"];
const AGENT: [&str; 2] = ["--manifest-path", "resources/agent/Cargo.toml"];

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a crate of a workspace").to_owned();
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let all: Vec<&Recipe> = CHECKS.iter().chain(&OTHERS).collect();
    let chosen: Option<Vec<&Recipe>> = match &wanted[..] {
        [] => None,
        [one] if one == "ci" => Some(CHECKS.iter().collect()),
        names => names.iter().map(|name| all.iter().copied().find(|recipe| recipe.0 == name)).collect(),
    };
    let Some(chosen) = chosen else {
        say(format_args!(
            "cargo xtask RECIPE...\n  {:<8} all that a change must pass: the first {}",
            "ci",
            CHECKS.len()
        ));
        all.iter().for_each(|recipe| say(format_args!("  {:<8} {}", recipe.0, recipe.1)));
        return ExitCode::from(2);
    };
    let mut times = Vec::new();
    for Recipe(name, about, run) in chosen {
        say(format_args!("\n== {name}: {about}"));
        let begun = Instant::now();
        let done = run(&root);
        times.push(format!("{name} {:.0} s", begun.elapsed().as_secs_f64()));
        if let Err(why) = done {
            say(format_args!("{why}\n{name} FAILED; {}", times.join(", ")));
            return ExitCode::FAILURE;
        }
    }
    say(format_args!("\n{}", times.join(", ")));
    ExitCode::SUCCESS
}

/// Says a line. A reader that has gone fails no recipe.
#[expect(clippy::disallowed_methods, reason = "a recipe's standard output is its own")]
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Runs a command to its end.
fn done(command: &mut Command) -> Done {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    say(format_args!("{} {}", Path::new(command.get_program()).display(), words.join(" ")));
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{status}")),
        Err(why) => Err(why.to_string()),
    }
}

fn in_root(root: &Path, program: impl AsRef<std::ffi::OsStr>, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(words).current_dir(root);
    command
}

fn run_cargo(root: &Path, words: &[&str]) -> Done {
    done(&mut in_root(root, cargo(), words))
}

fn format(root: &Path) -> Done {
    run_cargo(root, &["fmt", "--all", "--check"])?;
    [GUEST, AGENT].iter().try_for_each(|one| run_cargo(root, &[&["fmt"], &one[..], &["--check"]].concat()))
}

fn lints(root: &Path) -> Done {
    let deny = ["--locked", "--", "-D", "warnings"];
    run_cargo(root, &[&["clippy", "--workspace", "--all-targets"][..], &deny].concat())?;
    // `test = false` keeps this target out of `--all-targets`.
    run_cargo(root, &[&["clippy", "-p", "tests", "--test", "nested"][..], &deny].concat())?;
    run_cargo(root, &[&["clippy", "--release"][..], &GUEST, &deny].concat())?;
    run_cargo(root, &[&["clippy", "--all-targets"][..], &AGENT, &deny].concat())?;
    run_cargo(root, &[&["test", "--locked"][..], &AGENT].concat())
}

/// Collects what `of_crate` finds, and fails if it finds anything.
fn find(root: &Path, of_crate: impl Fn(&Path) -> Vec<String>) -> Done {
    let workspace = crates(root)?.into_iter().map(|Crate { directory, .. }| directory);
    let found: Vec<String> = workspace
        .chain(["resources/guest", "resources/agent"].map(PathBuf::from))
        .flat_map(|directory| {
            let found = of_crate(&root.join(&directory)).into_iter();
            found.map(move |what| format!("{}: {what}", directory.display())).collect::<Vec<_>>()
        })
        .collect();
    if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
}

fn circles(root: &Path) -> Done {
    find(root, |directory| {
        let roots = ["lib.rs", "main.rs"].map(|name| directory.join("src").join(name));
        roots.iter().filter(|path| path.exists()).flat_map(|path| circles::of_crate(path)).collect()
    })
}

fn limits(root: &Path) -> Done {
    find(root, limits::of_crate)
}

fn size(root: &Path) -> Done {
    for one in crates(root)? {
        say(format_args!("{:>6} {}", limits::code(&root.join(&one.directory)), one.name));
    }
    Ok(())
}

fn book(root: &Path) -> Done {
    architecture::table(root, &crates(root)?, false)?;
    architecture::paths(root)?;
    if Command::new("mdbook").arg("--version").output().is_err() {
        say(format_args!(
            "COULD NOT BUILD the book: there is no mdbook; `cargo test` checks its links and its summary"
        ));
        return Ok(());
    }
    let to = target(root).join("book");
    done(in_root(root, "mdbook", &["build", "docs", "--dest-dir"]).arg(to))
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn doc(root: &Path) -> Done {
    let words = ["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"];
    done(in_root(root, cargo(), &words).env("RUSTDOCFLAGS", "-D warnings"))
}

/// In a target directory of its own: the flag is part of every crate's fingerprint.
fn loom(root: &Path) -> Done {
    let words =
        ["test", "-p", "notifier-bridge", "--profile", "rig", "--locked", "--test", "loom", "--target-dir"];
    done(in_root(root, cargo(), &words).arg(target(root).join("loom")).env("RUSTFLAGS", "--cfg loom"))
}

/// The README's command, once the minimal Linux is there that one test boots on kvm_pvm.
fn test(root: &Path) -> Done {
    let readme =
        std::fs::read_to_string(root.join("README.md")).map_err(|why| format!("README.md: {why}"))?;
    let shown = readme.split("<!-- test command -->").nth(1).unwrap_or_default();
    let command = shown.lines().find(|line| line.starts_with("cargo test"));
    let command = command.ok_or("README.md has no test command")?;
    let mut shell = in_root(root, "bash", &["-c", command]);
    if Path::new("/sys/module/kvm_pvm").exists() {
        let built = in_root(root, "tests/peers/minimal-linux.sh", &[]).output();
        match built {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                shell.env("ZAPSCOPE_MINIMAL_KERNEL", path);
            }
            _ => say("there is no minimal Linux: the test that needs it will say so"),
        }
    }
    done(&mut shell)
}

fn rig(root: &Path) -> Done {
    run_cargo(root, &["test", "-p", "tests", "--test", "nested", "--profile", "rig", "--locked"])
}

/// The rig is two emulators of one thread each, to which time means little: compilers may run beside it. The plain tests
/// compare times, and come after it.
fn builds_and_rig(root: &Path) -> Done {
    let log = target(root).join("rig.log");
    std::fs::create_dir_all(target(root)).map_err(|why| format!("{}: {why}", target(root).display()))?;
    let output = std::fs::File::create(&log).map_err(|why| format!("{}: {why}", log.display()))?;
    let errors = output.try_clone().map_err(|why| why.to_string())?;
    let own = std::env::current_exe().map_err(|why| why.to_string())?;
    let mut rig = Command::new(own);
    let mut rig = rig.arg("rig").stdout(output).stderr(errors).spawn().map_err(|why| why.to_string())?;
    let built = [lints, doc, loom, build_tests].iter().try_for_each(|step| step(root));
    let rigged = rig.wait().map_err(|why| why.to_string())?;
    say(std::fs::read_to_string(&log).unwrap_or_default());
    built?;
    if rigged.success() { Ok(()) } else { Err(format!("the nested rig: {rigged}")) }
}

fn build_tests(root: &Path) -> Done {
    run_cargo(root, &["test", "--workspace", "--no-run", "--locked"])
}

fn memory(root: &Path) -> Done {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        say("COULD NOT RUN: /dev/kvm cannot be opened");
        return Ok(());
    }
    run_cargo(root, &["build", "--release", "--locked", "-p", "vmm"])?;
    done(in_root(root, "tests/peers/memory.sh", &[]).arg(target(root).join("release/zapscope")))
}

fn bench(root: &Path) -> Done {
    run_cargo(root, &["bench", "--locked"])
}

fn mutants(root: &Path) -> Done {
    run_cargo(root, &["mutants", "-p", "notifier-bridge", "--", "--lib", "--test", "no_alloc"])
}

fn write(root: &Path) -> Done {
    architecture::table(root, &crates(root)?, true)?;
    let words = ["test", "-p", "experiment", "--lib", "--locked", "reference"];
    done(in_root(root, cargo(), &words).env("ZAPSCOPE_WRITE_REFERENCE", "1"))
}
