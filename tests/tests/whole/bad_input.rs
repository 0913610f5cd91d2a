//! Bad input: a clear message, an exit code that is not 0, the host as it was.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Resource;
use tests::{bzimage, code, elf, program, stand_in};

crate::tests! {
    bad_command_lines_are_refused: [],
    bad_scenarios_are_refused_with_file_and_line: [],
    files_without_an_end_are_refused_at_once: [],
    bad_kernels_are_refused_by_name: [Kvm, SlotZap],
    a_guest_that_crashes_ends_the_run_with_its_registers: [Kvm, SlotZap],
    rows_without_swap_say_so_and_the_others_run: [],
    a_run_directory_is_never_overwritten: [],
    names_that_are_no_text_are_names: [],
}

/// What the user has to change.
const MISTAKE: i32 = 2;

/// The command line is refused as a mistake of the user's, with these words in at most three lines.
fn refused(directory: &Path, arguments: &[&str], words: &[&str]) {
    let text = ended(directory, MISTAKE, arguments, words);
    let lines = text.lines().filter(|line| line.starts_with("zapscope: ") && !line.contains(": warning: "));
    let lines = lines.count();
    assert!(lines <= 3, "{arguments:?}: {text}");
}

/// The command line ends with this exit code and these words. Returns all it said.
fn ended(directory: &Path, code: i32, arguments: &[&str], words: &[&str]) -> String {
    let output = program::output(directory, arguments);
    let text = program::stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{arguments:?} does not say {word:?}: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn bad_command_lines_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    refused(at, &["run", "no-such-scenario"], &["no-such-scenario", "swapout"]);
    refused(at, &["run", "missing.toml"], &["missing.toml"]);
    refused(at, &["run", "."], &["directory"]);
    for size in [
        "0",
        "3",
        "-1",
        "1XiB",
        "9223372036854775808",
        "1e300",
        "6 4MiB",
        "64__MiB",
        "5.GiB",
        ".5GiB",
        "0.0000001k",
    ] {
        refused(at, &["run", &format!("--zram={size}")], &[]);
    }
    for every in ["0s", "1", "1.s", "1 0s", "1_0s", "0.1ns"] {
        refused(at, &["attach", "--pid", "1", "--every", every], &["--every", every]);
    }
    refused(at, &["run", "--backend", "xen"], &["xen"]);
    refused(at, &["fly"], &["fly"]);
    refused(at, &[], &["Usage"]);
}

/// Files may be called anything that has no NUL.
fn names_that_are_no_text_are_names() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let name = |bytes: &'static [u8]| OsStr::from_bytes(bytes);
    let scenario = tests::scenario::of("2MiB").fill().sparse(3);
    std::fs::write(at.join(name(b"s\xff.toml")), scenario.text()).unwrap();
    let run = [
        name(b"run"),
        name(b"s\xff.toml"),
        name(b"--backend"),
        name(b"soft"),
        name(b"--out"),
        name(b"o\xff"),
    ];
    let output = program::output(at, &run);
    assert_eq!(output.status.code(), Some(0), "{}", program::stderr(&output));
    assert!(at.join(name(b"o\xff")).join("run.json").is_file());
    std::fs::write(at.join("kernel"), bzimage::kernel(&code::power_off())).unwrap();
    let disk = [name(b"boot"), name(b"--kernel"), name(b"kernel"), name(b"--disk"), name(b"d\xff:ro")];
    for (arguments, what) in [(&[name(b"run"), name(b"n\xff")][..], "no scenario"), (&disk, "No such file")] {
        let output = program::output(at, arguments);
        let said = program::stderr(&output);
        assert_eq!(output.status.code(), Some(MISTAKE), "{said}");
        assert!(said.contains(what) && !said.contains("invalid UTF-8"), "{said}");
    }
}

/// A scenario that is sound but for one line.
fn scenario(memory: &str, matrix: &str, step: &str) -> String {
    format!(
        "name = \"x\"\nmemory = {memory}\n[matrix]\nbacking = [\"4k\"]\npolicy = [\"kernel\"]\n{matrix}\n\
         [[case]]\nname = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\n{step}\n"
    )
}

fn bad_scenarios_are_refused_with_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let sparse = "do = \"reclaim\"\nvictims = \"sparse\"\ncount = 3";
    for (text, line, word) in [
        (scenario("0", "", sparse), "2", "string"),
        (scenario("\"0\"", "", sparse), "2", "memory"),
        (scenario("\"3\"", "", sparse), "2", "memory"),
        (scenario("\"9223372036854775808\"", "", sparse), "2", "memory"),
        (scenario("\"8MiB\"", "granule = [\"3\"]", sparse), "6", "granule"),
        (scenario("\"8MiB\"", "granule = [\"0\"]", sparse), "6", "granule"),
        (scenario("\"8MiB\"", "speed = 3", sparse), "6", "speed"),
        (scenario("\"8MiB\"", "reclaim = [\"eat\"]", sparse), "6", "eat"),
        (scenario("\"8MiB\"", "", "do = \"reclaim\"\nvictims = \"sparse\"\ncount = 99999"), "12", "victims"),
        (scenario("\"8MiB\"", "", "do = \"reclaim\"\nrange = \"0..9MiB\""), "13", "memory"),
        (scenario("\"8MiB\"", "", "do = \"stop\""), "12", "hot"),
    ] {
        let path = directory.path().join("bad.toml");
        std::fs::write(&path, &text).unwrap();
        refused(directory.path(), &["run", "bad.toml"], &["bad.toml", &format!(":{line}"), word]);
    }
    // Sound in itself, but more memslots than there are.
    std::fs::write(directory.path().join("bad.toml"), scenario("\"1GiB\"", "granule = [\"4KiB\"]", sparse))
        .unwrap();
    refused(directory.path(), &["run", "bad.toml", "--backend", "soft"], &["bad.toml:6", "262144 memslots"]);
    std::fs::write(directory.path().join("bad.toml"), [0xff, 0xfe]).unwrap();
    refused(directory.path(), &["run", "bad.toml"], &["bad.toml"]);
}

/// A scenario that needs no swap, on the guest kernel `kernel`.
fn on_kernel(kernel: &str) -> String {
    scenario("\"4MiB\"", "reclaim = [\"dontneed\"]", "do = \"reclaim\"\nvictims = \"sparse\"\ncount = 3")
        .replacen("memory", &format!("kernel = \"{kernel}\"\nmemory"), 1)
}

/// A pipe that nobody writes, a device, a directory, and a file of a TiB, in the place of each file that can be named: no
/// wait, little memory, one line.
fn files_without_an_end_are_refused_at_once() {
    const MEMORY: u64 = 2 << 30;
    const AT_ONCE: Duration = Duration::from_secs(20);
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let file = |name: &str| at.join(name);
    let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, file("pipe"), fifo.0, fifo.1, 0).unwrap();
    std::fs::create_dir(file("place")).unwrap();
    std::fs::File::create(file("vast")).unwrap().set_len(1 << 40).unwrap();
    std::fs::write(file("kernel"), bzimage::kernel(&code::power_off())).unwrap();
    let good =
        scenario("\"4MiB\"", "reclaim = [\"dontneed\"]", "do = \"reclaim\"\nvictims = \"sparse\"\ncount = 3");
    std::fs::write(file("good.toml"), good).unwrap();
    let run = ["run", "good.toml", "--backend", "soft", "--out", "out"];
    assert!(program::output(at, &run).status.success());
    std::fs::create_dir(file("other")).unwrap();
    std::fs::copy(file("out/run.json"), file("other/run.json")).unwrap();

    const NAME: &str = "NAME";
    let (directory, large) = ("is a directory", Some("more than"));
    // With what is said of a directory, and of a file that is too large; an initrd and a disk may be of any size.
    let cases: [(&[&str], &str, Option<&str>); 9] = [
        (&["run", NAME], directory, large),
        (&["run", "s.toml", "--backend", "soft"], directory, large),
        (&["boot", "--kernel", NAME], directory, large),
        (&["boot", "--kernel", "kernel", "--initrd", NAME], directory, None),
        (&["boot", "--kernel", "kernel", "--disk", NAME], directory, None),
        (&["boot", "--restore", NAME], directory, Some("it is no snapshot")),
        (&["replay", NAME], "the run record place/run.json: name the directory", large),
        (&["timeline", NAME], "the run record place/run.json: name the directory", large),
        (&["replay", "other"], directory, Some("this is no event log")),
    ];
    for name in ["pipe", "/dev/zero", "place", "vast"] {
        std::fs::write(file("s.toml"), on_kernel(name)).unwrap();
        let log = file("other/events.log");
        let _ = std::fs::remove_file(&log);
        std::os::unix::fs::symlink(at.join(name), &log).unwrap();
        for (arguments, directory, large) in cases {
            let words = match name {
                "pipe" => Some("is a pipe"),
                "place" => Some(directory),
                "vast" => large,
                _ => Some("is a character device"),
            };
            let Some(words) = words else { continue };
            let named: Vec<_> =
                arguments.iter().map(|&word| if word == NAME { name } else { word }).collect();
            let mut command = program::grouped(at, &named);
            stand_in::limited(&mut command, Resource::As, MEMORY);
            let begun = Instant::now();
            let output = program::end_of_group(command.spawn().unwrap());
            let said = program::stderr(&output);
            assert_eq!(output.status.code(), Some(MISTAKE), "{named:?}: {said}");
            assert!(said.contains(words) && said.lines().count() <= 3, "{named:?}, {words}: {said}");
            assert!(begun.elapsed() < AT_ONCE, "{named:?} took {:?}", begun.elapsed());
        }
    }
}

fn bad_kernels_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::write(at.join("scenario.toml"), on_kernel("guest.elf")).unwrap();
    refused(at, &["run", "scenario.toml"], &["guest.elf", "No such file"]);
    let mut arm = resources::GUEST.to_vec();
    arm[18] = 183;
    let mut wild = resources::GUEST.to_vec();
    // The first program header's file size: more than there is.
    wild[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
    let no_note = {
        let mut image = elf::image(&[0xf4]);
        // The note's type.
        let at = image.windows(4).position(|four| four == b"Xen\0").unwrap() - 4;
        image[at] = 1;
        image
    };
    for (image, word) in [
        (Vec::new(), "0 bytes"),
        (resources::GUEST[..100].to_vec(), "cannot be loaded"),
        (resources::GUEST[..resources::GUEST.len() / 2].to_vec(), "cannot be loaded"),
        (arm, "AArch64"),
        (wild, "cannot be loaded"),
        (no_note, "PVH"),
        (b"#!/bin/sh\n".repeat(100), "no ELF file, but a text file that begins with `#!/bin/sh`"),
    ] {
        std::fs::write(at.join("guest.elf"), image).unwrap();
        refused(at, &["run", "scenario.toml"], &[word]);
    }
}

fn a_guest_that_crashes_ends_the_run_with_its_registers() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("scenario.toml"), on_kernel("guest.elf")).unwrap();
    std::fs::write(directory.path().join("guest.elf"), elf::image(&[0xf4])).unwrap();
    ended(directory.path(), 1, &["run", "scenario.toml"], &["halted", "rip 0x0000000000100001", "cr0"]);
}

fn rows_without_swap_say_so_and_the_others_run() {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().count() > 1 {
        println!("    this host has swap: only the rows that run were checked");
    }
    let directory = tempfile::tempdir().unwrap();
    let text = scenario(
        "\"4MiB\"",
        "reclaim = [\"pageout\", \"dontneed\"]",
        "do = \"reclaim\"\nvictims = \"sparse\"\ncount = 3",
    );
    std::fs::write(directory.path().join("scenario.toml"), text).unwrap();
    let output = program::output(directory.path(), &["run", "scenario.toml", "--json", "--backend", "soft"]);
    let complete = swaps.lines().count() > 1;
    assert_eq!(output.status.code(), Some(if complete { 0 } else { 3 }), "{}", program::stderr(&output));
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(record["rows"][1]["could_not_run"].is_null());
    assert_eq!(record["rows"][1]["evicted_bytes"].as_u64(), Some(3 * 4096));
    if swaps.lines().count() <= 1 {
        let why = record["rows"][0]["could_not_run"].as_str().unwrap();
        assert!(why.contains("no swap") || why.contains("there is none"), "{why}");
        assert!(why.contains("--zram"), "{why}");
        assert!(record["rows"][0]["evicted_bytes"].is_null(), "never 0");
    }
}

fn a_run_directory_is_never_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let text =
        scenario("\"4MiB\"", "reclaim = [\"dontneed\"]", "do = \"reclaim\"\nvictims = \"sparse\"\ncount = 3");
    std::fs::write(directory.path().join("scenario.toml"), text).unwrap();
    let arguments = ["run", "scenario.toml", "--backend", "soft", "--out", "here"];
    assert!(program::output(directory.path(), &arguments).status.success());
    refused(directory.path(), &arguments, &["run.json", "--out"]);
}
