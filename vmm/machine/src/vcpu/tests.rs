use guest_abi::layout::{DOORBELL_PORT, IMAGE_GPA, doorbell};
use guest_mem::waits::{Patience, WAKE};
use guest_mem::{Gpa, GpaRange};

use super::*;
use crate::testing::{about_to_run, bare_guest, submit_touch};
use crate::{Accounting, KvmSlots, VmCore, ZapMethod};

/// A guest that runs in a circle.
const SPIN: [u8; 2] = [0xeb, 0xfe];

/// A thread's part, and what others have of it.
fn runner(code: &[u8]) -> (Runner, VmCore) {
    let (core, fd) = about_to_run(code);
    sys::prepare_signal().unwrap();
    let runner = Runner {
        fd,
        up: false,
        processor: None,
        mailbox: Arc::new(Mailbox::new(0, core.control_area(0).unwrap())),
        report: Arc::default(),
        surroundings: core.surroundings.clone(),
    };
    (runner, core)
}

/// How a vCPU failed that ends by itself, and how far behind its first instruction; `None` if it was told to end.
fn failure_of(runner: Runner) -> Option<(CrashKind, u64)> {
    let mailbox = runner.mailbox.clone();
    Thread::start("vcpu", move || runner.run()).unwrap().end(WAKE).unwrap().unwrap();
    let report = mailbox.failure()?;
    let registers = report.registers.expect("KVM tells them");
    Some((report.kind.clone(), registers.rip - IMAGE_GPA))
}

/// Nobody kicks it: whoever told it so had found it outside of the guest.
#[test]
#[ignore = "needs: Kvm"]
fn what_a_vcpu_was_told_before_it_entered_is_heard() {
    let (quits, _core) = runner(&SPIN);
    quits.mailbox.quit();
    assert_eq!(failure_of(quits), None);
    let (reports, _core) = runner(&SPIN);
    reports.report.store(true, Ordering::SeqCst);
    assert_eq!(failure_of(reports), Some((CrashKind::Silent, 0)));
}

#[test]
#[ignore = "needs: Kvm"]
fn a_panic_is_told_in_the_guests_words() {
    let [low, high] = DOORBELL_PORT.to_le_bytes();
    // mov dx, DOORBELL_PORT; mov al, PANIC; out dx, al
    let (panics, _core) = runner(&[0x66, 0xba, low, high, 0xb0, doorbell::PANIC, 0xee]);
    panics.mailbox.area().push_message("out of cheese");
    let Some((CrashKind::Panic(words), at)) = failure_of(panics) else { panic!("it does not") };
    assert_eq!(words, "out of cheese");
    // KVM may leave the vCPU before the instruction that rang, or behind it.
    assert!((6..=7).contains(&at), "{at}");
}

/// A thread that ran on would keep the guest's memory.
#[test]
#[ignore = "needs: Kvm"]
fn a_machine_that_is_dropped_ends_its_threads() {
    let machine = bare_guest();
    let vcpu = &machine.vcpus()[0];
    let thread = vcpu.thread().expect("it is up").as_raw_nonzero().get();
    assert_eq!(vcpu.thread_number(), thread, "what a report says that waits for it");
    let name = std::fs::read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap();
    assert_eq!(name, "vcpu0\n");
    let arena = Arc::downgrade(machine.core().arena());
    drop(machine);
    assert!(arena.upgrade().is_none());
}

/// Whoever holds the vCPUs tells them nothing.
#[test]
#[ignore = "needs: Kvm"]
fn a_vcpu_that_is_only_held_goes_on() {
    let machine = bare_guest();
    submit_touch(&machine, None);
    let vcpu = &machine.vcpus()[0];
    let (area, mut patience) = (vcpu.mailbox().area(), Patience::new(WAKE));
    while area.touches() == 0 {
        assert_eq!(patience.over(), None, "it does not begin");
    }
    for _ in 0..20 {
        drop(machine.core().surroundings.gate.hold().unwrap());
    }
    area.request_stop();
    vcpu.wait(WAKE).expect("it is still at work, and stops now");
}

/// KVM counts a flush if a vCPU had to leave the guest for it.
#[test]
#[ignore = "needs: Kvm"]
fn flushes_are_counted() {
    let machine = bare_guest();
    let core = machine.core();
    submit_touch(&machine, None);
    let listener = KvmSlots::new(core.clone(), ZapMethod::Protect, Accounting::Off);
    let flushes = || core.stats.remote_tlb_flushes().expect("KVM counts them since Linux 5.14");
    let (before, mut patience) = (flushes(), Patience::new(WAKE));
    while flushes() == before {
        assert_eq!(patience.over(), None, "what a vCPU uses goes again and again, and nothing is flushed");
        listener.zap(core.arena().range());
    }
}

#[test]
fn the_first_entry_is_the_one_that_is_kept() {
    let surroundings = Surroundings::new(2, Vec::new());
    let first_entry = || surroundings.first_entry_ns.load(Ordering::Relaxed);
    assert_eq!(first_entry(), 0);
    let before = notifier_bridge::monotonic_ns();
    surroundings.note_first_entry();
    let first = first_entry();
    assert!(first >= before);
    surroundings.note_first_entry();
    assert_eq!(first_entry(), first);
}

#[test]
fn memory_is_promised_where_a_range_of_it_is() {
    let ram = [(0, 0x2000), (0x8000, 0x1000)].map(|(at, len)| GpaRange::with_len(Gpa::new(at), len).unwrap());
    let surroundings = Surroundings::new(1, ram.to_vec());
    for (gpa, promised) in [(0, true), (0x1fff, true), (0x2000, false), (0x8fff, true), (0x9000, false)] {
        assert_eq!(surroundings.is_ram(gpa), promised, "{gpa:#x}");
    }
}
