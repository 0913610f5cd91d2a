use std::time::Instant;

use super::*;

/// Threads that "run a guest" by watching a word that must not change while they are inside.
#[test]
fn nobody_is_inside_while_the_gate_is_held() {
    sys::prepare_signal().unwrap();
    let gate = Gate::new(2);
    let hole = AtomicU32::new(0);
    let (stop, seen) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for vcpu in 0..2 {
            let (gate, hole, stop, seen) = (&gate, &hole, &stop, &seen);
            scope.spawn(move || {
                let mut immediate_exit = 0u8;
                let flag = &raw mut immediate_exit;
                // SAFETY: the local outlives the seat.
                let seated = unsafe { gate.sit(vcpu, flag) };
                while !stop.load(Ordering::Relaxed) {
                    let entered = seated.enter(|| {
                        for _ in 0..50 {
                            assert_eq!(hole.load(Ordering::Relaxed), 0, "inside while the slot was gone");
                            // SAFETY: the local outlives the seat.
                            if unsafe { flag.read_volatile() } != 0 {
                                break;
                            }
                        }
                        seen.fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(entered.is_ok());
                }
            });
        }
        while seen.load(Ordering::Relaxed) < 100 {
            std::hint::spin_loop();
        }
        for _ in 0..5_000 {
            let hold = gate.hold().unwrap();
            hole.store(1, Ordering::Relaxed);
            std::hint::spin_loop();
            hole.store(0, Ordering::Relaxed);
            drop(hold);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Each vCPU sees its kick and lingers, the last one longest: the holder waits for all of them.
#[test]
fn the_slowest_to_leave_is_waited_for() {
    const VCPUS: u32 = 3;
    sys::prepare_signal().unwrap();
    let gate = Gate::new(VCPUS);
    let (inside, left) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for vcpu in 0..VCPUS {
            let (gate, inside, left) = (&gate, &inside, &left);
            scope.spawn(move || {
                let mut immediate_exit = 0u8;
                let flag = &raw mut immediate_exit;
                // SAFETY: the local outlives the seat.
                let seated = unsafe { gate.sit(vcpu, flag) };
                let entered = seated.enter(|| {
                    inside.fetch_add(1, Ordering::SeqCst);
                    // SAFETY: the local outlives the seat.
                    while unsafe { flag.read_volatile() } == 0 {
                        std::thread::yield_now();
                    }
                    let kicked = Instant::now();
                    while kicked.elapsed() < Duration::from_millis(30) * vcpu {
                        std::thread::yield_now();
                    }
                    left.fetch_add(1, Ordering::SeqCst);
                });
                assert!(entered.is_ok());
            });
        }
        while inside.load(Ordering::SeqCst) < VCPUS {
            std::thread::yield_now();
        }
        let _hold = gate.hold().unwrap();
        assert_eq!(left.load(Ordering::SeqCst), VCPUS, "some are in the guest still");
    });
}

/// Between any two holds the vCPU gets in at least once, however fast they follow one another.
#[test]
fn a_storm_of_holds_does_not_starve_a_vcpu() {
    sys::prepare_signal().unwrap();
    let gate = Gate::new(1);
    let (stop, entries) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut immediate_exit = 0u8;
            // SAFETY: the local outlives the seat.
            let seated = unsafe { gate.sit(0, &raw mut immediate_exit) };
            while !stop.load(Ordering::Relaxed) {
                assert!(seated.enter(|| entries.fetch_add(1, Ordering::SeqCst)).is_ok());
            }
        });
        while entries.load(Ordering::SeqCst) == 0 {
            std::hint::spin_loop();
        }
        for _ in 0..2_000 {
            let hold = gate.hold().unwrap();
            let before = entries.load(Ordering::SeqCst);
            // Long enough for the vCPU to come to the gate and wait there.
            while gate.waiting.load(Ordering::SeqCst) == 0 {
                std::hint::spin_loop();
            }
            drop(hold);
            let next = gate.hold().unwrap();
            assert!(entries.load(Ordering::SeqCst) > before, "shut out twice in a row");
            drop(next);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn nobody_gets_in_once_it_is_shut_for_good() {
    let gate = Gate::new(1);
    let mut immediate_exit = 0u8;
    // SAFETY: the local outlives the gate's use.
    let seated = unsafe { gate.sit(0, &raw mut immediate_exit) };
    assert_eq!(seated.enter(|| 7), Ok(7));
    let hold = gate.hold().unwrap();
    gate.shut_for_good(CrashKind::Silent);
    gate.shut_for_good(CrashKind::HostFault);
    drop(hold);
    assert_eq!(seated.enter(|| 7), Err(&CrashKind::Silent));
}

/// By then the memory of `immediate_exit` may be used for something else.
#[test]
fn a_kick_that_comes_too_late_writes_nowhere() {
    sys::prepare_signal().unwrap();
    let gate = Gate::new(1);
    assert_eq!(gate.thread(0), None);
    let mut immediate_exit = 0u8;
    let flag = &raw mut immediate_exit;
    // SAFETY: the local outlives the gate's use.
    let seated = unsafe { gate.sit(0, flag) };
    assert_eq!(gate.thread(0), Some(rustix::thread::gettid()));
    let kick = || {
        // As the kicking thread has seen it a moment ago.
        gate.seats[0].inside.store(1, Ordering::SeqCst);
        gate.kick(0);
        // SAFETY: the local outlives the gate's use.
        unsafe { flag.read_volatile() }
    };
    assert_eq!(kick(), 1);
    // SAFETY: as above.
    unsafe { flag.write_volatile(0) };
    drop(seated);
    assert_eq!(kick(), 0);
}

#[test]
fn two_who_hold_are_both_waited_for() {
    let gate = Gate::new(1);
    let first = gate.hold().unwrap();
    let second = gate.hold().unwrap();
    drop(first);
    assert_eq!(gate.closed.load(Ordering::Relaxed), 1);
    drop(second);
    assert_eq!(gate.closed.load(Ordering::Relaxed), 0);
}

const SHORT: Duration = Duration::from_millis(50);

/// vCPU 1 is kicked, and stays where it is until `told`.
#[test]
fn a_vcpu_that_does_not_leave_is_named_and_nobody_gets_in_again() {
    sys::prepare_signal().unwrap();
    let gate = Gate::with_patience(2, SHORT);
    let told = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut immediate_exit = 0u8;
            // SAFETY: the local outlives the seat.
            let seated = unsafe { gate.sit(1, &raw mut immediate_exit) };
            let stays = || {
                while !told.load(Ordering::SeqCst) {
                    std::thread::yield_now()
                }
            };
            assert_eq!(seated.enter(stays), Ok(()));
            assert!(matches!(seated.enter(|| ()), Err(CrashKind::Overdue(_))), "it was let in again");
        });
        while gate.seats[1].inside.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let overdue = gate.hold().unwrap_err().to_string();
        told.store(true, Ordering::SeqCst);
        assert!(overdue.contains(" waited 50 ms for vCPU 1 to leave the guest, in vain"), "{overdue}");
        assert_eq!(gate.shut().unwrap().to_string(), overdue);
    });
    assert_eq!(gate.closed.load(Ordering::SeqCst), 0, "it holds nobody up");
}

/// A change of a word without its wake is found at the deadline, and told apart from a change that does not come.
#[test]
fn a_lost_wake_is_told_apart_from_a_vcpu_that_does_not_come() {
    let word = Futex::default();
    word.store(1, Ordering::SeqCst);
    assert_eq!(wait_for_zero(&word, SHORT), Err(Missed::Zero));
    assert_eq!(missed(&word, 2), None, "it has changed");
    word.store(0, Ordering::SeqCst);
    assert_eq!(missed(&word, 1), Some(Missed::Wake));

    let gate = Gate::with_patience(1, SHORT);
    gate.waiting.store(1, Ordering::SeqCst);
    let overdue = gate.hold().unwrap_err().to_string();
    assert!(overdue.contains("for the vCPUs that it kept out of the guest to come in again"), "{overdue}");
}

#[test]
fn a_gate_that_does_not_open_is_not_waited_at_for_ever() {
    let gate = Gate::with_patience(1, SHORT / 10);
    let mut immediate_exit = 0u8;
    // SAFETY: the local outlives the seat.
    let seated = unsafe { gate.sit(0, &raw mut immediate_exit) };
    let hold = gate.hold().unwrap();
    let why = seated.enter(|| ()).unwrap_err().to_string();
    assert!(why.contains(" waited 50 ms for the gate to be opened"), "{why}");
    drop(hold);
    assert!(gate.hold().is_ok(), "nobody is counted as waiting any more");
}
