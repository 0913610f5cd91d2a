use std::time::Instant;

use guest_abi::layout::IMAGE_GPA;
use guest_mem::{Gpa, GpaRange, HvaRange, PAGE_SIZE};
use rustix::mm::MprotectFlags;

use super::*;
use crate::VmCore;
use crate::pc::{Ending, PcExits};
use crate::testing::{about_to_run, in_ring_3};
use guest::GuestRam;

/// A guest that runs in a circle.
const SPIN: [u8; 2] = [0xeb, 0xfe];
/// Where no memslot is.
const HOLE: u64 = 0xc000_0000;

/// mov [address], eax; hlt
fn writes_to(address: u64) -> Vec<u8> {
    [&[0xa3], &(address as u32).to_le_bytes()[..], &[0xf4]].concat()
}

/// mov eax, [address]; hlt
fn reads_from(address: u64) -> Vec<u8> {
    [&[0xa1], &(address as u32).to_le_bytes()[..], &[0xf4]].concat()
}

/// A PC's vCPU that runs this code, without interrupt controllers: a halt is its end.
struct Prepared {
    core: VmCore,
    cpu: GuestCpu,
    shared: Arc<VmShared>,
    exits: PcExits,
}

/// One with this RAM.
fn prepared(code: &[u8], ram: &[GpaRange]) -> Prepared {
    let (core, cpu) = about_to_run(code);
    sys::prepare_signal().unwrap();
    Prepared { core, cpu, shared: Arc::new(VmShared::new(1, ram.to_vec())), exits: PcExits::default() }
}

impl Prepared {
    fn start(self) -> (Vcpu, VmCore) {
        (Vcpu::start(0, self.cpu, self.shared, self.exits, None).unwrap(), self.core)
    }

    /// Runs it to its end, and says what that was.
    fn crash(self, meanwhile: impl FnOnce(&VmShared)) -> CrashKind {
        let (shared, life) = (self.shared.clone(), self.exits.life.clone());
        let (send, ended) = channel();
        life.at_end(move |ending| send.send(ending.clone()).unwrap());
        let _vcpu = self.start();
        meanwhile(&shared);
        match ended.recv_timeout(WAKE).expect("it ends") {
            Ending::Crash(report) => report.kind.clone(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
#[ignore = "needs: Kvm"]
fn a_vcpu_that_runs_says_where_and_goes_on() {
    let prepared = prepared(&SPIN, &[]);
    let (shared, life) = (Arc::downgrade(&prepared.shared), prepared.exits.life.clone());
    let (vcpu, _core) = prepared.start();
    for _ in 0..20 {
        assert_eq!(vcpu.registers().expect("it runs").rip, IMAGE_GPA);
    }
    drop(vcpu);
    assert!(life.ending().is_none());
    assert!(shared.upgrade().is_none(), "its thread has ended");
}

#[test]
#[ignore = "needs: Kvm"]
fn a_command_may_take_longer_than_the_way_to_it() {
    let (vcpu, _core) = prepared(&SPIN, &[]).start();
    let patience = Duration::from_secs(2);
    let work = move |_: &VcpuFd| std::thread::sleep(patience / COMMANDS * 2);
    assert_eq!(vcpu.with_patience(patience, work).unwrap(), Some(()));
}

/// No kick is needed: the thread that changes the state has found the vCPU outside of the guest.
#[test]
#[ignore = "needs: Kvm"]
fn a_vcpu_that_was_told_something_does_not_enter() {
    for (tell, next) in
        [(SharedRunState::quit as fn(&SharedRunState), Next::Quit), (SharedRunState::command, Next::Enter)]
    {
        let Prepared { core: _core, cpu, shared, exits } = prepared(&[0xf4], &[]);
        let (_, commands) = channel();
        let mut runner =
            Runner { index: 0, cpu, shared: shared.clone(), state: Arc::default(), commands, exits };
        let immediate_exit = &raw mut runner.cpu.file_mut().get_kvm_run().immediate_exit;
        // SAFETY: the page is mapped until the runner is dropped, after the seat.
        let seated = unsafe { shared.gate.sit(0, immediate_exit) };
        tell(&runner.state);
        assert_eq!(runner.enter(&seated), next);
        runner.state = Arc::default();
        assert_eq!(runner.enter(&seated), Next::Crash(CrashKind::Halted));
        drop(seated);
    }
}

#[test]
#[ignore = "needs: Kvm"]
fn a_hole_is_a_crash_where_memory_was_promised_and_a_device_elsewhere() {
    let promised = [GpaRange::with_len(Gpa::new(HOLE), PAGE_SIZE).unwrap()];
    for (code, write) in [(reads_from(HOLE), false), (writes_to(HOLE), true)] {
        let crash = |ram| prepared(&code, ram).crash(|_| ());
        assert_eq!(crash(&promised), CrashKind::NoMemory { gpa: HOLE, write, promised: true });
        assert_eq!(crash(&[]), CrashKind::Halted);
    }
}

#[test]
#[ignore = "needs: Kvm"]
fn what_kvm_cannot_emulate_is_told() {
    // mov eax, HOLE; jmp eax: KVM fetches no instructions from a device.
    let code = [&[0xb8], &(HOLE as u32).to_le_bytes()[..], &[0xff, 0xe0]].concat();
    let crash = prepared(&code, &[]).crash(|_| ());
    assert!(matches!(crash, CrashKind::InternalError { suberror: 1, .. }), "{crash:?}");
}

/// One in ring 3 that writes to a page and is then at its end.
fn writes_in_ring_3() -> (Prepared, HvaRange) {
    let prepared = prepared(&[], &[]);
    let low = prepared.core.low()[0].clone();
    let memory = GuestRam::new([(Gpa::new(0), low.clone())]);
    // inc byte [rdi]; hlt, which ring 3 must not
    in_ring_3(&memory, &prepared.cpu, &[0xfe, 0x07, 0xf4]);
    let regs = prepared.cpu.get_regs().unwrap();
    prepared.cpu.set_regs(&kvm_bindings::kvm_regs { rdi: IMAGE_GPA, ..regs }).unwrap();
    let page = low.slice(IMAGE_GPA, PAGE_SIZE).unwrap();
    (prepared, page)
}

#[test]
#[ignore = "needs: Kvm"]
fn memory_that_is_read_only_without_a_reason_is_a_crash() {
    let (prepared, page) = writes_in_ring_3();
    set_access(page, MprotectFlags::READ);
    assert_eq!(prepared.crash(|_| ()), CrashKind::HostFault);
}

#[test]
#[ignore = "needs: Kvm"]
fn a_write_during_a_toggle_is_done_after_it() {
    let (prepared, page) = writes_in_ring_3();
    let shared = prepared.shared.clone();
    let toggle = shared.window.open();
    set_access(page, MprotectFlags::READ);
    let crash = prepared.crash(|shared| {
        wait_for_futex(&shared.gate);
        set_access(page, MprotectFlags::READ | MprotectFlags::WRITE);
        drop(toggle);
    });
    assert_eq!(crash, CrashKind::TripleFault);
}

/// Changes the access to a page of guest memory.
fn set_access(page: HvaRange, access: MprotectFlags) {
    // SAFETY: a page of guest memory, to which no reference exists.
    unsafe { rustix::mm::mprotect(page.start().as_ptr(), page.len() as usize, access) }.unwrap();
}

/// Waits until the vCPU's thread sleeps on a futex.
fn wait_for_futex(gate: &crate::gate::Gate) {
    let deadline = Instant::now() + WAKE;
    let waits = || {
        let thread = gate.thread(0)?.as_raw_nonzero();
        let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).ok()?;
        call.starts_with(&format!("{} ", libc::SYS_futex)).then_some(())
    };
    while waits().is_none() {
        assert!(Instant::now() < deadline, "the vCPU does not wait for the end of the toggle");
        std::thread::yield_now();
    }
}
