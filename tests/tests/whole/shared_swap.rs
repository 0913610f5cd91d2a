//! Swap shared with others: another process's device that comes before our own, and a limit that is squeezed while
//! a guest uses all of its memory.

use std::path::PathBuf;

use guest_mem::SwapInfo;
use harness::until;
use rustix::process::Signal;
use test_memory::ZramSwap;
use tests::host::{emulated, of_backend};
use tests::place::{Ended, Place};
use tests::record::{number, rows};
use tests::running::Running;
use tests::{program, scenario};

crate::tests! {
    pages_that_went_to_somebody_elses_device_are_told: [Zram],
    a_squeeze_of_memory_in_use_kills_nobody(backend in ["soft", "kvm"]): [Zram, Cgroup, of_backend(backend)],
}

/// Another swap device comes while a row is made, takes what the row evicts, and goes with it. The run stands still while the
/// device is made, however slow the host is; what it evicts afterwards is more than each CPU's cache of free slots (64) holds
/// of the first device.
fn pages_that_went_to_somebody_elses_device_are_told() {
    let slowly = ["victims = \"sparse\"", "count = 2000", "pace = \"4ms\""];
    let scenario = scenario::of("16MiB").reclaims(&["pageout"]).fill().step("reclaim", &slowly).refault();
    let place = Place::of(&scenario);
    let arguments = ["run", "s.toml", "--backend", "soft", "--zram", "64MiB", "--json", "--out", "out"];
    let mut run = Running::start(place.zapscope(&arguments));
    run.read_until("made zram");
    let made = run.said.split_once("made zram").unwrap().1.split(' ').next().unwrap();
    let own = PathBuf::from(format!("/dev/zram{made}"));
    until("the run swaps to its own device", || {
        SwapInfo::read().find(&own).is_some_and(|area| area.used > 0)
    });
    run.signal(Signal::STOP);
    let theirs = ZramSwap::create(64 << 20, None);
    run.signal(Signal::CONT);
    let theirs = theirs.unwrap();
    // The device's own count of what is stored: slots that a CPU keeps for later are in use, too.
    until("the run swaps to the other device", || theirs.stored_bytes() >= 128 << 10);
    drop(theirs);
    let record = run.end().with(0).json();
    let row = &rows(&record)[0];
    assert_eq!(number(row, "integrity_errors"), 0);
    assert!(number(row, "returned_bytes") > 64 << 10, "what went there came back with its end: {row:#}");
    let warnings = row["warnings"].to_string();
    assert!(warnings.contains("swap areas changed while this row was made"), "{warnings}");
}

/// Everything is in use, by 1/n: a fault that comes while the limit is low finds little to reclaim. It waits for the limit
/// to be lifted, where it went to the OOM killer.
fn a_squeeze_of_memory_in_use_kills_nobody(backend: &str) {
    let hot = ["pages = \"all\"", "walk = \"zipf\"", "exponent = 1.0", "access = \"write\""];
    // On an emulated host 64 MiB take minutes.
    let (arena, taken) = if emulated() { ("8MiB", "0..7MiB") } else { ("64MiB", "0..60MiB") };
    let scenario = scenario::of(arena).policies(&["kernel", "folio", "slot"]).reclaims(&["cgroup"]);
    let scenario = scenario.fill().step("hot", &hot).range(taken, "page").stop().refault();
    let place = Place::of(&scenario);
    let arguments = ["run", "s.toml", "--backend", backend, "--zram", "128MiB", "--tap", "off", "--json"];
    let ended = program::end_of_group(program::grouped(place.path(), &arguments).spawn().unwrap());
    let record = Ended::from(ended).with(0).json();
    for row in rows(&record) {
        assert!(row["could_not_run"].is_null(), "{row:#}");
        assert_eq!(number(row, "integrity_errors"), 0, "{row:#}");
    }
}
