//! Every way out leaves the host as it was: the end, Ctrl-C, SIGKILL; and two runs at once (see also `interrupted`).

use std::time::Duration;

use rustix::process::Signal;
use tests::place::Place;
use tests::running::Running;
use tests::scenario::{self, Scenario};
use tests::swaps::Swaps;

crate::tests! {
    the_end_of_a_run_takes_its_swap_away: [Zram],
    ctrl_c_takes_the_swap_away: [Zram],
    ctrl_c_stops_a_guest_in_a_storm_of_zaps: [Kvm, SlotZap, Zram],
    an_end_that_nobody_hears_of_takes_the_swap_away: [Zram],
    sigkill_takes_the_swap_away: [Zram],
    a_second_run_has_its_own_device_and_both_are_warned: [Zram],
}

/// A scenario that lasts as long as its baseline.
fn lasting(baseline: &str) -> Scenario {
    scenario::of("8MiB").reclaims(&["pageout"]).fill().hot(8).baseline(baseline)
}

/// A run with a zram device, up to the beginning of its row.
fn run(scenario: &Scenario, backend: &str) -> (Running, Place) {
    let place = Place::of(scenario);
    let arguments = ["run", "s.toml", "--zram", "64MiB", "--backend", backend, "--json"];
    let mut running = Running::start(place.zapscope(&arguments));
    running.read_until("[1/1]");
    (running, place)
}

fn run_for(baseline: &str) -> (Running, Place) {
    run(&lasting(baseline).sparse(64), "soft")
}

fn the_end_of_a_run_takes_its_swap_away() {
    let before = Swaps::now();
    let (running, _place) = run_for("1ms");
    running.end().with(0).says(&["zram"]);
    assert_eq!(Swaps::now(), before);
}

fn ctrl_c_takes_the_swap_away() {
    let before = Swaps::now();
    let (mut running, _place) = run_for("60s");
    assert_ne!(Swaps::now(), before);
    running.signal(Signal::INT);
    running.end().with(130);
    assert_eq!(Swaps::now(), before);
}

/// The vCPU is stopped and let go thousands of times a second when the run is told to end: it must hear of it
/// wherever it is just then.
fn ctrl_c_stops_a_guest_in_a_storm_of_zaps() {
    let before = Swaps::now();
    let pages = ["range = \"0..4MiB\"", "unit = \"page\"", "pace = \"2ms\""];
    let storm = lasting("1ms").policies(&["slot"]).step("reclaim", &pages);
    // The storm lasts two seconds at least; on an emulated host it begins only after some hundred milliseconds.
    for moment in [20, 50, 90, 130, 1000] {
        let (mut running, _place) = run(&storm, "kvm");
        std::thread::sleep(Duration::from_millis(moment));
        running.signal(Signal::INT);
        running.end().with(130);
        assert_eq!(Swaps::now(), before);
    }
}

/// Standard error that has lost its reader changes nothing.
fn an_end_that_nobody_hears_of_takes_the_swap_away() {
    let before = Swaps::now();
    let (running, _place) = run_for("300ms");
    let status = running.end_unheard();
    assert!(status.success(), "{status:?}");
    assert_eq!(Swaps::now(), before);
}

fn sigkill_takes_the_swap_away() {
    let before = Swaps::now();
    let (mut running, _place) = run_for("60s");
    running.signal(Signal::KILL);
    assert_eq!(running.end().status.code(), None);
    before.restored();
}

fn a_second_run_has_its_own_device_and_both_are_warned() {
    let before = Swaps::now();
    // Long enough for another to start and end meanwhile.
    let (first, _place) = run_for(if tests::host::emulated() { "15s" } else { "1500ms" });
    let (second, _other) = run_for("1ms");
    assert_eq!(Swaps::now().devices.len(), before.devices.len() + 2, "a device each");
    for running in [second, first] {
        running.end().with(0).says(&["another zapscope"]);
    }
    assert_eq!(Swaps::now(), before);
}
