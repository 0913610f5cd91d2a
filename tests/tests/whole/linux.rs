//! Linux guests: stock kernels to their console, the scenarios in them, the balloon.
//!
//! They run where `ZAPSCOPE_GUEST_KERNELS` names kernels, in practice in the nested rig.

use std::collections::BTreeMap;
use std::path::Path;

use experiment::scenario::LinuxGuest;
use guest_mem::{Backing, PageCounts, PageScanner};
use lab::testbed::{GuestSystem, LinuxMachine, LinuxSetup};
use machine::Kvm;
use serde_json::Value;
use tests::console::Console;
use tests::host;
use tests::place::Place;
use tests::scenario::{self, Scenario};

crate::tests! {
    every_kernel_has_a_shell_on_its_console: [LinuxGuest],
    a_kernel_that_panics_asks_for_a_reset: [LinuxGuest],
    swapping_a_linux_guest_counts_as_swapping_the_bare_one: [LinuxGuest, SlotZap, Zram],
    small_pages_in_the_guest_are_one_piece_of_memory_too: [LinuxGuest, SlotZap],
    the_balloon_returns_what_it_takes_and_gives_it_back: [LinuxGuest],
    steps_run_commands_and_inflate_the_balloon: [LinuxGuest],
}

fn kernel() -> String {
    host::guest_kernels().pop().expect("the test needs one, and was told that there is one")
}

fn initrd() -> String {
    host::guest_initrd().expect("who names kernels names an initrd too")
}

/// From the bzImage to a prompt, a command typed there, and power-off: every kernel with 1 and 2 vCPUs.
fn every_kernel_has_a_shell_on_its_console() {
    let kernels = host::guest_kernels();
    assert!(!kernels.is_empty());
    for kernel in kernels {
        for vcpus in ["1", "2"] {
            let arguments = ["boot", "--kernel", &kernel, "--initrd", &initrd(), "--memory", "256MiB"];
            let mut console = Console::open(&[&arguments[..], &["--vcpus", vcpus]].concat());
            console.expect("/ # ");
            console.type_line("echo $((6*7)) processors=$(nproc) $(uname -s)");
            console.expect(&format!("42 processors={vcpus} Linux"));
            console.type_line("poweroff -f");
            let (status, output) = console.end();
            assert_eq!(status.code(), Some(0), "{kernel} with {vcpus} vCPUs:\n{output}");
        }
    }
}

fn a_kernel_that_panics_asks_for_a_reset() {
    let command_line = ["--cmdline", "root=/dev/nothing rootdelay=0"];
    let arguments = ["boot", "--kernel", &kernel(), "--memory", "256MiB"];
    let console = Console::open(&[&arguments[..], &command_line].concat());
    let (status, output) = console.end();
    assert!(output.contains("Kernel panic - not syncing: VFS"), "{output}");
    assert_eq!(status.code(), Some(4), "{output}");
}

/// Runs the built-in `swapout` with these arguments; on an emulated host a quarter of its memory. Its rows by case, backing,
/// policy and reclaim.
fn rows(arguments: &[&str]) -> BTreeMap<String, Value> {
    let place = Place::new();
    place.put("s.toml", scenario::swapout(if host::emulated() { 4 } else { 1 }));
    let record = place.record(&[&["--zram", "512MiB"], arguments].concat());
    let guest = record["guest"].as_str().unwrap();
    assert_eq!(guest.starts_with("Linux "), arguments.contains(&"linux"), "{guest}");
    let name = |row: &Value| {
        ["case", "backing", "policy", "reclaim"].map(|key| row[key].as_str().unwrap().to_owned()).join(" ")
    };
    record["rows"].as_array().unwrap().iter().map(|row| (name(row), row.clone())).collect()
}

/// What is counted of a scenario does not depend on who uses the memory: every row says the same of a Linux guest as of
/// the bare one. What `vm` drops besides, the guest's own memory, is more in a Linux guest.
fn swapping_a_linux_guest_counts_as_swapping_the_bare_one() {
    let bare = rows(&[]);
    let linux = rows(&["--guest", "linux", "--kernel", &kernel()]);
    assert_eq!(bare.keys().collect::<Vec<_>>(), linux.keys().collect::<Vec<_>>());
    for (name, row) in &linux {
        let same = |keys: &[&str]| {
            for key in keys {
                assert_eq!(row[key], bare[name][key], "{key} of {name}:\n{row:#}\n{:#}", bare[name]);
            }
        };
        assert_eq!((&row["integrity_errors"], &row["could_not_run"]), (&0.into(), &Value::Null), "{name}");
        same(&["victims", "victim_bytes", "evicted_bytes", "needed_bytes", "achieved"]);
        if row["reclaim"] == "uffd" {
            // A return in user space takes long enough for the guest's kernel to fault on its own memory meanwhile, and
            // KVM's count does not say where.
            same(&["uffd_faults", "uffd_returned", "uffd_huge_returns"]);
            assert!(row["refaults"].as_u64() >= bare[name]["refaults"].as_u64(), "{name}:\n{row:#}");
        } else {
            same(&["refaults"]);
        }
        assert_ne!(row["refaults"], 0, "{name}");
        let more = |key: &str| row[key].as_u64() > bare[name][key].as_u64();
        match row["policy"].as_str().unwrap() {
            // Its kernel's own memory is dropped with the rest.
            "vm" => assert!(more("invalidations") && more("zapped_bytes"), "{name}:\n{row:#}"),
            _ => same(&["invalidations", "invalidated_bytes", "slots_zapped", "zapped_bytes"]),
        }
        // Where a zap is wider, what the hot loop has mapped again by then is a matter of time.
        if (&row["policy"], &row["backing"]) == (&"kernel".into(), &"4k".into()) {
            same(&["sptes_zapped_4k", "sptes_zapped_2m", "collateral_faults"]);
            assert_eq!(row["collateral_faults"], 0, "{name}");
        }
    }
}

/// A scenario in a Linux guest, with one more line about it.
fn linux(line: &str) -> Scenario {
    let guest = format!("guest = \"linux\"\nkernel = {:?}\nlinux.memory = \"256MiB\"\n{line}", kernel());
    scenario::of("32MiB").top(&guest)
}

fn small_pages_in_the_guest_are_one_piece_of_memory_too() {
    let scenario = linux("linux.pages = \"small\"").backings(&["4k", "thp"]).policies(&["folio", "slot"]);
    let record = Place::of(&scenario.fill().sparse(100).refault()).record(&[]);
    for row in record["rows"].as_array().unwrap() {
        let exact = (&row["integrity_errors"], &row["evicted_bytes"], &row["refaults"]);
        assert_eq!(exact, (&0.into(), &(100 * 4096).into(), &100.into()), "{row:#}");
        assert!(row["guest_counters"]["pgfault"].as_u64() > Some(0), "{row:#}");
    }
}

fn machine(guest: &LinuxGuest) -> LinuxMachine {
    let kernel = kernel();
    let setup =
        LinuxSetup { kernel: Path::new(&kernel), guest, vcpus: 1, arena: 32 << 20, slot_zap_all_quirk: true };
    LinuxMachine::start(&Kvm::open().unwrap(), &setup).unwrap()
}

/// Bytes of the kernel's own memory that the host has.
fn resident(machine: &LinuxMachine) -> u64 {
    let (mut scanner, mut runs, mut pages) = (PageScanner::new().unwrap(), Vec::new(), 0);
    let memory = machine.pc().memory();
    for (node, region) in memory.nodes().iter().zip(memory.ram()) {
        if !node.movable {
            scanner.scan_region(region, region.range(), &mut runs).unwrap();
            pages += PageCounts::of(&runs).resident();
        }
    }
    pages * 4096
}

fn the_balloon_returns_what_it_takes_and_gives_it_back() {
    const SIZE: u64 = 96 << 20;
    for backing in [Backing::Base4k, Backing::Memfd] {
        let guest =
            LinuxGuest { memory: 256 << 20, backing, initrd: Some(initrd().into()), ..Default::default() };
        let machine = machine(&guest);
        // All of it is there, so that what goes shows.
        machine.map_own_memory();
        let before = resident(&machine);
        assert_eq!(before, 256 << 20);
        machine.take_given_back();
        machine.set_balloon(SIZE).unwrap();
        let after = resident(&machine);
        let fell = (before - after) as f64 / SIZE as f64;
        assert!((0.98..1.02).contains(&fell), "{backing}: {before} to {after}: {fell}");
        let ledger = machine.take_given_back().balloon;
        assert_eq!(ledger.bytes, SIZE, "each page went through the bridge: {ledger:?}");
        assert!(ledger.ranges > 0, "{ledger:?}");
        assert_eq!(machine.balloon().counts().refused_outside, 0);

        machine.set_balloon(0).unwrap();
        // Memory that only the balloon's pages can be.
        let fill = "dd if=/dev/zero of=/tmp/fill bs=1M count=120 && sync && rm /tmp/fill";
        let end = machine.shell(fill).unwrap();
        assert_eq!(end.status, 0, "{}", end.tail);
        assert!(resident(&machine) > after + (SIZE / 2), "it works with it");
    }
}

fn steps_run_commands_and_inflate_the_balloon() {
    let scenario = linux(&format!("linux.initrd = {:?}", initrd())).policies(&["slot"]).fill();
    let scenario = scenario.step("inflate", &["size = \"32MiB\""]);
    let scenario = scenario.step("sh", &["command = \"echo hello; exit 3\""]).step("deflate", &[]);
    let record = Place::of(&scenario.sparse(10)).record(&[]);
    let row = &record["rows"][0];
    assert_eq!(
        (&row["integrity_errors"], &row["balloon_bytes"]),
        (&0.into(), &(32u64 << 20).into()),
        "{row:#}"
    );
    assert!(row["balloon_invalidations"].as_u64() > Some(0), "{row:#}");
    // The row's own invalidations are the step's alone.
    assert_eq!(row["invalidations"], 10, "{row:#}");
    let warnings = row["warnings"].as_array().unwrap();
    // What the guest wrote is quoted, line by line.
    let said = "sh: `echo hello; exit 3` ended with 3:\n  | hello";
    assert!(warnings.iter().any(|warning| warning["text"] == said), "{warnings:?}");
}
