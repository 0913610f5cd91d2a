//! Bad input: a clear message, an exit code that is not 0, the host as it was.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::process::Resource;
use tests::place::{Ended, Place};
use tests::scenario::{self, Scenario};
use tests::swaps::Swaps;
use tests::{bzimage, code, elf, program, stand_in};

crate::tests! {
    bad_command_lines_are_refused: [],
    bad_scenarios_are_refused_with_file_and_line: [],
    files_without_an_end_are_refused_at_once: [],
    bad_kernels_are_refused_by_name: [Kvm, SlotZap],
    a_guest_that_crashes_ends_the_run_with_its_registers: [Kvm, SlotZap],
    rows_without_swap_say_so_and_the_others_run: [],
    names_that_are_no_text_are_names: [],
}

/// What the user has to change.
const MISTAKE: i32 = 2;

/// The command line is refused as a mistake of the user's, with these words in at most three lines.
#[track_caller]
fn refused(place: &Place, arguments: &[&str], words: &[&str]) {
    let said = place.run(arguments).with(MISTAKE).says(words).said;
    let is_told = |line: &&str| line.starts_with("zapscope: ") && !line.contains(": warning: ");
    assert!(said.lines().filter(is_told).count() <= 3, "{arguments:?}: {said}");
}

fn bad_command_lines_are_refused() {
    let place = &Place::new();
    refused(place, &["run", "no-such-scenario"], &["no-such-scenario", "swapout"]);
    refused(place, &["run", "missing.toml"], &["missing.toml"]);
    refused(place, &["run", "."], &["directory"]);
    let sizes = ["0", "3", "-1", "1XiB", "9223372036854775808", "1e300", "6 4MiB", "64__MiB"];
    for size in sizes.iter().chain(&["5.GiB", ".5GiB", "0.0000001k"]) {
        refused(place, &["run", &format!("--zram={size}")], &[]);
    }
    for every in ["0s", "1", "1.s", "1 0s", "1_0s", "0.1ns"] {
        refused(place, &["attach", "--pid", "1", "--every", every], &["--every", every]);
    }
    refused(place, &["run", "--backend", "xen"], &["xen"]);
    refused(place, &["fly"], &["fly"]);
    refused(place, &[], &["Usage"]);
}

/// Files may be called anything that has no NUL.
fn names_that_are_no_text_are_names() {
    let place = Place::new();
    let name = |bytes: &'static [u8]| OsStr::from_bytes(bytes);
    place.put(name(b"s\xff.toml"), scenario::of("2MiB").fill().sparse(3).text());
    place.run(&[&b"run"[..], b"s\xff.toml", b"--backend", b"soft", b"--out", b"o\xff"].map(name)).with(0);
    assert!(place.file(name(b"o\xff")).join("run.json").is_file());
    place.put("kernel", bzimage::kernel(&code::power_off()));
    let disk = [name(b"boot"), name(b"--kernel"), name(b"kernel"), name(b"--disk"), name(b"d\xff:ro")];
    for (arguments, what) in [(&[name(b"run"), name(b"n\xff")][..], "no scenario"), (&disk, "No such file")] {
        place.run(arguments).with(MISTAKE).says(&[what]).never_says(&["invalid UTF-8"]);
    }
}

/// A scenario that is sound but for one line: its memory in line 2, one of the matrix in line 7, or its last step from
/// line 12 on.
fn broken(memory: &str, matrix: &str, step: &[&str]) -> String {
    let scenario = scenario::of("8MiB").axis("zap", &["auto"]).fill().step(step[0], &step[1..]).text();
    let scenario = scenario.replace("\"8MiB\"", memory);
    if matrix.is_empty() { scenario } else { scenario.replace("zap = [\"auto\"]", matrix) }
}

fn bad_scenarios_are_refused_with_file_and_line() {
    let place = Place::new();
    let sparse = ["reclaim", "victims = \"sparse\"", "count = 3"];
    let many = ["reclaim", "victims = \"sparse\"", "count = 99999"];
    for (text, line, word) in [
        (broken("0", "", &sparse), 2, "string"),
        (broken("\"0\"", "", &sparse), 2, "memory"),
        (broken("\"3\"", "", &sparse), 2, "memory"),
        (broken("\"9223372036854775808\"", "", &sparse), 2, "memory"),
        (broken("\"8MiB\"", "granule = [\"3\"]", &sparse), 7, "granule"),
        (broken("\"8MiB\"", "granule = [\"0\"]", &sparse), 7, "granule"),
        (broken("\"8MiB\"", "speed = 3", &sparse), 7, "speed"),
        (broken("\"8MiB\"", "zap = [\"eat\"]", &sparse), 7, "eat"),
        (broken("\"8MiB\"", "", &many), 13, "victims"),
        (broken("\"8MiB\"", "", &["reclaim", "range = \"0..9MiB\""]), 14, "memory"),
        (broken("\"8MiB\"", "", &["stop"]), 13, "hot"),
        // Sound in itself, but more memslots than there are.
        (broken("\"1GiB\"", "granule = [\"4KiB\"]", &sparse), 7, "262144 memslots"),
    ] {
        place.put("bad.toml", text);
        refused(&place, &["run", "bad.toml", "--backend", "soft"], &[&format!("bad.toml:{line}"), word]);
    }
    place.put("bad.toml", [0xff, 0xfe]);
    refused(&place, &["run", "bad.toml"], &["bad.toml"]);
}

/// A scenario that needs no swap, on the guest kernel `kernel`.
fn on_kernel(kernel: &str) -> Scenario {
    scenario::of("4MiB").top(&format!("kernel = {kernel:?}")).fill().sparse(3)
}

/// A pipe without a writer, a device, a directory, and a file of a TiB, in the place of each file that can be named: no
/// wait, little memory, one line.
fn files_without_an_end_are_refused_at_once() {
    const MEMORY: u64 = 2 << 30;
    const AT_ONCE: Duration = Duration::from_secs(20);
    let place = Place::of(&scenario::of("4MiB").fill().sparse(3));
    let file = |name: &str| place.file(name);
    let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, file("pipe"), fifo.0, fifo.1, 0).unwrap();
    std::fs::create_dir(file("place")).unwrap();
    std::fs::File::create(file("vast")).unwrap().set_len(1 << 40).unwrap();
    place.put("kernel", bzimage::kernel(&code::power_off()));
    place.run(&["run", "s.toml", "--backend", "soft", "--out", "out"]).with(0);
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
        place.put("s.toml", on_kernel(name).text());
        let log = file("other/events.log");
        let _ = std::fs::remove_file(&log);
        std::os::unix::fs::symlink(place.path().join(name), &log).unwrap();
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
            let mut command = program::grouped(place.path(), &named);
            stand_in::limited(&mut command, Resource::As, MEMORY);
            let begun = Instant::now();
            let ended = Ended::from(program::end_of_group(command.spawn().unwrap())).with(MISTAKE);
            let said = ended.says(&[words]).said;
            assert!(said.lines().count() <= 3, "{named:?}, {words}: {said}");
            assert!(begun.elapsed() < AT_ONCE, "{named:?} took {:?}", begun.elapsed());
        }
    }
}

fn bad_kernels_are_refused_by_name() {
    let place = Place::of(&on_kernel("guest.elf"));
    refused(&place, &["run", "s.toml"], &["guest.elf", "No such file"]);
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
        place.put("guest.elf", image);
        refused(&place, &["run", "s.toml"], &[word]);
    }
}

fn a_guest_that_crashes_ends_the_run_with_its_registers() {
    let place = Place::of(&on_kernel("guest.elf"));
    place.put("guest.elf", elf::image(&[0xf4]));
    place.run(&["run", "s.toml"]).with(1).says(&["halted", "rip 0x0000000000100001", "cr0"]);
}

fn rows_without_swap_say_so_and_the_others_run() {
    let has_swap = !Swaps::now().areas.is_empty();
    if has_swap {
        println!("    this host has swap: only the rows that run were checked");
    }
    let place = Place::of(&scenario::of("4MiB").reclaims(&["pageout", "dontneed"]).fill().sparse(3));
    let ended = place.run(&["run", "s.toml", "--json", "--backend", "soft"]);
    let record = ended.with(if has_swap { 0 } else { 3 }).json();
    assert!(record["rows"][1]["could_not_run"].is_null());
    assert_eq!(record["rows"][1]["evicted_bytes"].as_u64(), Some(3 * 4096));
    if !has_swap {
        let why = record["rows"][0]["could_not_run"].as_str().unwrap();
        assert!(why.contains("no swap") || why.contains("there is none"), "{why}");
        assert!(why.contains("--zram"), "{why}");
        assert!(record["rows"][0]["evicted_bytes"].is_null(), "never 0");
    }
}
