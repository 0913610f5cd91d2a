//! The commands of README and book, run as they stand there. A comment before a block of commands names what they need of
//! the host; one before a block of text says that the last command prints it:
//!
//! ```text
//! <!-- needs: Kvm, Zram -->        the names of `Need`, or `none`
//! <!-- ends with: 0, 1 -->         the exit codes that the last command may have; 0 unless said otherwise
//! <!-- prints -->                  the words of each line are in one line of the output, in this order; numbers may differ
//! ```

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use harness::Test;
use test_memory::ZramSwap;
use tests::host::{Need, guest_initrd, guest_kernels};
use tests::place::{Ended, Place};
use tests::program::BE_ZAPSCOPE;
use tests::scenario;

use crate::attach::qemu;

/// Every page, also where there is no source.
const PAGES: [(&str, &str); 15] = [
    ("README", include_str!("../../../README.md")),
    ("index", include_str!("../../../docs/src/index.md")),
    ("attach", include_str!("../../../docs/src/attach.md")),
    ("commands", include_str!("../../../docs/src/commands.md")),
    ("expectations", include_str!("../../../docs/src/expectations.md")),
    ("invalidation", include_str!("../../../docs/src/invalidation.md")),
    ("kernel-account", include_str!("../../../docs/src/kernel-account.md")),
    ("linux", include_str!("../../../docs/src/linux.md")),
    ("numbers", include_str!("../../../docs/src/numbers.md")),
    ("own-swap", include_str!("../../../docs/src/own-swap.md")),
    ("replay", include_str!("../../../docs/src/replay.md")),
    ("scenarios", include_str!("../../../docs/src/scenarios.md")),
    ("snapshot", include_str!("../../../docs/src/snapshot.md")),
    ("table", include_str!("../../../docs/src/table.md")),
    ("timeline", include_str!("../../../docs/src/timeline.md")),
];

/// The run that pages name: here of a quarter of the built-in scenario's memory.
const RUN: &str = "zapscope-runs/2017-08-29T101500Z-swapout";
/// The kernel and the initrd that pages name.
const KERNEL: &str = "/boot/vmlinuz-6.12";
const INITRD: &str = "initrd.img";

/// Commands of a page that stand together.
struct Example {
    name: String,
    needs: Vec<String>,
    commands: Vec<String>,
    codes: Vec<i32>,
    /// What the last of them prints.
    prints: String,
}

/// A test for each block of commands.
pub fn tests() -> Vec<Test> {
    let examples = PAGES.iter().flat_map(|(name, page)| examples(name, page));
    examples.map(test).collect()
}

fn test(example: Example) -> Test {
    let path = format!("whole::book::every_command_runs({})", example.name);
    let needs: Option<Vec<Need>> = example.needs.iter().map(|name| Need::named(name)).collect();
    match needs {
        Some(needs) => Test::new(&path, &needs, move || run(&example)).within(900),
        None => Test::new(&path, &[] as &[Need], move || panic!("unknown needs: {:?}", example.needs)),
    }
}

/// The blocks of commands of a page that run zapscope, with what is said about them.
fn examples(name: &str, page: &str) -> Vec<Example> {
    let (mut examples, mut needs, mut codes, mut prints) = (Vec::<Example>::new(), None, vec![0], false);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let comment = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->"));
        if let Some(named) = comment.and_then(|comment| comment.strip_prefix("needs: ")) {
            needs = Some(named.split(", ").filter(|name| *name != "none").map(str::to_owned).collect());
        }
        if let Some(listed) = comment.and_then(|comment| comment.strip_prefix("ends with: ")) {
            codes = listed.split(", ").map(|code| code.parse().expect("an exit code")).collect();
        }
        prints |= comment == Some("prints");
        let Some(language) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
        let commands = block.iter().map(|line| line.replace("cargo run --release --", "zapscope"));
        let commands: Vec<String> = commands.filter(|line| line.starts_with("zapscope ")).collect();
        if language == "sh" && !commands.is_empty() {
            let needs = needs.take().unwrap_or_else(|| vec!["a comment that names them".to_owned()]);
            let name = format!("{name} {}", examples.len() + 1);
            let codes = std::mem::replace(&mut codes, vec![0]);
            examples.push(Example { name, needs, commands, codes, prints: String::new() });
        } else if std::mem::take(&mut prints) {
            examples.last_mut().expect("a command prints it").prints = block.join("\n");
        }
    }
    examples
}

fn run(example: &Example) {
    let place = Place::new();
    let binary = std::env::current_exe().unwrap();
    let zapscope = format!("#!/bin/sh\nexec {} {BE_ZAPSCOPE} \"$@\"\n", binary.display());
    let text = example.commands.join("\n");
    // A VM of another VMM, and swap for what is pushed out of it.
    let vm = text.contains("pidof").then(|| (qemu(&place), ZramSwap::create(128 << 20, None).unwrap()));
    let pidof = format!("#!/bin/sh\necho {}\n", vm.as_ref().map_or(0, |(vm, _)| vm.0.id()));
    std::fs::create_dir(place.file("bin")).unwrap();
    for (name, script) in [("bin/zapscope", &zapscope), ("bin/pidof", &pidof)] {
        place.put(name, script);
        std::fs::set_permissions(place.file(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    if text.contains(RUN) {
        place.put("swapout.toml", scenario::swapout(4));
        place.run(&["run", "swapout.toml", "--zram", "1GiB", "--out", RUN]).with(0);
    }
    let path = format!("{}:{}", place.file("bin").display(), std::env::var("PATH").unwrap());
    let mut printed = String::new();
    for (index, line) in example.commands.iter().enumerate() {
        let line = line.replace(KERNEL, &guest_kernels().pop().unwrap_or_default());
        let line = line.replace(INITRD, &guest_initrd().unwrap_or_default());
        // A guest's console has a shell, which this ends; nothing else reads it.
        place.put("input", "poweroff -f\n");
        let input = std::fs::File::open(place.file("input")).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]).current_dir(place.path()).env("PATH", &path).stdin(Stdio::from(input));
        let _waiting = harness::waiting(format!("the end of `{line}`"));
        let ended = Ended::from(shell.output().unwrap());
        let code = ended.status.code().unwrap_or(-1);
        let may_be = index + 1 == example.commands.len() && example.codes.contains(&code);
        assert!(code == 0 || may_be, "`{line}` ended with {code}: {}\n{}", ended.text(), ended.said);
        printed = ended.text();
    }
    for line in example.prints.lines() {
        assert!(printed.lines().any(|other| is_like(line, other)), "no line like {line:?} in:\n{printed}");
    }
}

/// Whether the words of a line are in another, in their order. A word has no digit, and is no unit or rule of a table.
fn is_like(line: &str, other: &str) -> bool {
    let is_word = |word: &&str| {
        word.chars().any(char::is_alphabetic)
            && !word.chars().any(|letter| letter.is_ascii_digit())
            && !["B", "KiB", "MiB", "GiB", "ns", "µs", "ms", "s"].contains(word)
    };
    let mut others = other.split_whitespace();
    line.split_whitespace().filter(is_word).all(|word| others.any(|other| other == word))
}
