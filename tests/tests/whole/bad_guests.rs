//! Guests that misbehave end in a report, never in a hang.

use std::sync::Arc;
use std::time::Duration;

use guest::{CrashKind, CrashReport, GuestError};
use guest_abi::arch::DOORBELL_PORT;
use guest_abi::layout::{ARENA_GPA, CONTROL_GPA, PAGE_SIZE, doorbell};
use guest_abi::order::{Access, Task, Walk, WorkOrder};
use guest_mem::Backing;
use machine::Kvm;
use machine::{Accounting, KvmSlots, Machine, ZapMethod};
use tests::elf;
use tests::machine::{Bare, PATIENCE, config};

crate::tests! {
    a_page_fault_in_the_guest_is_reported_with_registers: [Kvm, SlotZap],
    an_access_beyond_ram_is_no_memory: [Kvm, SlotZap],
    a_triple_fault_is_named: [Kvm, SlotZap],
    a_guest_that_halts_is_named: [Kvm, SlotZap],
    a_guest_that_loops_is_asked_where_it_is: [Kvm, SlotZap],
    an_unknown_port_is_named: [Kvm, SlotZap],
    a_wrong_ring_of_the_doorbell_is_named: [Kvm, SlotZap],
    garbage_in_the_control_block_is_an_error: [Kvm, SlotZap],
    a_fault_of_the_host_that_no_toggle_explains_is_named: [Kvm, SlotZap],
}

fn touch(start: u64) -> WorkOrder {
    let task = Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: u64::MAX };
    WorkOrder { start, len: 4096, walk: Walk::Sequential, task }
}

/// What becomes of the test guest when it touches `start`.
fn crash_at(start: u64) -> Arc<CrashReport> {
    let bare = Bare::start(config(1, 2, Backing::Base4k));
    bare.submit(0, &touch(start));
    crashed(bare.machine.wait(0, PATIENCE).map(drop))
}

fn crashed(result: Result<(), GuestError>) -> Arc<CrashReport> {
    match result {
        Err(GuestError::Crashed(report)) => {
            assert!(report.registers.is_some(), "a report has registers");
            report
        }
        other => panic!("the guest should have crashed: {other:?}"),
    }
}

/// What becomes of a guest that runs `code` in place of the test guest.
fn crash_of(code: &[u8]) -> Arc<CrashReport> {
    let kvm = Kvm::open().unwrap();
    let machine = Machine::start(&kvm, &config(1, 2, Backing::Base4k), &elf::image(code)).unwrap();
    crashed(machine.wait_up())
}

fn a_page_fault_in_the_guest_is_reported_with_registers() {
    let wild = 1 << 40;
    let report = crash_at(wild);
    let CrashKind::Exception(frame) = report.kind else { panic!("{report}") };
    assert_eq!((frame.vector, frame.cr2 & !4095), (14, wild));
    let text = report.to_string();
    assert!(text.contains("#PF page fault") && text.contains("rip 0x") && text.contains("cr3"), "{text}");
}

fn an_access_beyond_ram_is_no_memory() {
    let beyond = ARENA_GPA + (2 << 20);
    let report = crash_at(beyond);
    let CrashKind::NoMemory { gpa, promised, .. } = report.kind else { panic!("{report}") };
    assert_eq!((gpa & !4095, promised), (beyond, false));
}

fn a_triple_fault_is_named() {
    // Load an empty interrupt table, then an undefined instruction: lidt [0x100010]; ud2.
    let mut code = vec![0x0f, 0x01, 0x1d];
    code.extend_from_slice(&(elf::CODE_GPA + 16).to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x0b]);
    code.resize(32, 0);
    assert_eq!(crash_of(&code).kind, CrashKind::TripleFault);
}

fn a_guest_that_halts_is_named() {
    assert_eq!(crash_of(&[0xf4]).kind, CrashKind::Halted);
}

fn a_guest_that_loops_is_asked_where_it_is() {
    let kvm = Kvm::open().unwrap();
    let image = elf::image(&[0xeb, 0xfe]);
    let machine = Machine::start(&kvm, &config(1, 2, Backing::Base4k), &image).unwrap();
    let report = crashed(machine.wait(0, Duration::from_millis(300)).map(drop));
    assert_eq!(report.kind, CrashKind::Silent);
    assert_eq!(report.registers.unwrap().rip, u64::from(elf::CODE_GPA));
}

fn an_unknown_port_is_named() {
    // out 0x80, al
    assert_eq!(crash_of(&[0xe6, 0x80]).kind, CrashKind::Port { port: 0x80, write: true });
    // in al, 0x60
    assert_eq!(crash_of(&[0xe4, 0x60]).kind, CrashKind::Port { port: 0x60, write: false });
}

/// mov dx, port; mov al, value; out dx, al
fn ring(value: u8) -> Vec<u8> {
    let [low, high] = DOORBELL_PORT.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn a_wrong_ring_of_the_doorbell_is_named() {
    assert_eq!(crash_of(&ring(doorbell::DONE)).kind, CrashKind::Doorbell(doorbell::DONE));
    assert_eq!(crash_of(&ring(0xee)).kind, CrashKind::Doorbell(0xee));
}

/// Fills the control block with numbers that make no sense, reports for work, and calls every order done.
fn garbage_in_the_control_block_is_an_error() {
    // mov edi, CONTROL_GPA; mov ecx, 0x1000 / 4; then, as long as there is: mov [edi], ecx; add edi, 4; loop
    let mut code = vec![0xbf];
    code.extend_from_slice(&u32::try_from(CONTROL_GPA).unwrap().to_le_bytes());
    code.extend_from_slice(&[0xb9, 0x00, 0x04, 0x00, 0x00, 0x89, 0x0f, 0x83, 0xc7, 0x04, 0xe2, 0xf9]);
    code.extend(ring(doorbell::READY));
    code.extend(ring(doorbell::DONE));
    code.extend_from_slice(&[0xeb, 0xfe]);
    let kvm = Kvm::open().unwrap();
    let machine = Machine::start(&kvm, &config(1, 2, Backing::Base4k), &elf::image(&code)).unwrap();
    let mailbox = machine.vcpus()[0].mailbox();
    assert!(matches!(machine.wait_up(), Err(GuestError::Refused { .. })), "the outcome is nonsense");
    assert!(matches!(mailbox.take_stalls(|_| ()), Err(GuestError::Ring { .. })), "and so is the ring");
    mailbox.submit(&touch(ARENA_GPA)).unwrap();
    assert!(matches!(machine.wait(0, PATIENCE), Err(GuestError::Refused { .. })));
    mailbox.submit(&touch(ARENA_GPA)).unwrap();
    assert_eq!(crashed(machine.wait(0, Duration::from_millis(300)).map(drop)).kind, CrashKind::Silent);
}

/// Memory that is read-only in the host, and not by a toggle of ours, would be written to again and again for ever.
fn a_fault_of_the_host_that_no_toggle_explains_is_named() {
    let bare = Bare::start(config(1, 2, Backing::Base4k));
    bare.fill(1);
    // A toggle that is over explains nothing any more.
    KvmSlots::new(bare.machine.core().clone(), ZapMethod::Protect, Accounting::Off).zap(bare.pages(3, 1));
    let page = bare.pages(3, 1);
    // SAFETY: memory of the test's own guest, whose content stays.
    let done = unsafe { libc::mprotect(page.start().as_ptr(), page.len() as usize, libc::PROT_READ) };
    assert_eq!(done, 0);
    bare.submit(0, &touch(ARENA_GPA + 3 * PAGE_SIZE));
    assert_eq!(crashed(bare.machine.wait(0, PATIENCE).map(drop)).kind, CrashKind::HostFault);
}
