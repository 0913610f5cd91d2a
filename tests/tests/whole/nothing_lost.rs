//! Nothing is lost: vCPUs write and do locked read-modify-writes as fast as they can while their pages are
//! zapped under them, and at the end every counter and every page is right.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use guest_abi::layout::PAGE_SIZE;
use guest_abi::order::{Access, Task, Walk};
use guest_abi::work::SplitMix64;
use guest_mem::Backing;
use machine::{Accounting, KvmSlots, VmConfig, ZapMethod};
use tests::machine::{Bare, PATIENCE, config};

crate::tests! {
    under_slot_zaps_and_toggles: [Kvm, SlotZap],
    under_slot_zaps_with_the_quirk: [Kvm],
    under_unmapping: [Kvm, SlotZap],
    under_zaps_of_low_memory_too: [Kvm, SlotZap],
    low_memory_is_not_protected_while_the_host_writes_to_it: [Kvm, SlotZap],
}

/// Zaps at full length, in a suite that has to end soon, and in one on an emulated host.
const FULL: u64 = 100_000;
const SHORT: u64 = 4_000;
const EMULATED: u64 = 1_000;

fn zaps() -> u64 {
    if tests::host::asked_for("ZAPSCOPE_LONG") {
        FULL
    } else if tests::host::emulated() {
        EMULATED
    } else {
        SHORT
    }
}

/// Two vCPUs on the same pages, one with plain increments of its own lane, one with locked adds; `zap` is
/// called with a number that counts up, until `count`.
fn hammer(bare: &Bare, count: u64, mut zap: impl FnMut(u64)) {
    bare.fill(1);
    let touch = |access| Task::Touch { access, passes: None, stall_cycles: u64::MAX };
    bare.submit(0, &bare.order(Walk::Sequential, touch(Access::Write)));
    bare.submit(1, &bare.order(Walk::Sequential, touch(Access::LockedAdd)));
    for vcpu in &bare.machine.vcpus()[..2] {
        while vcpu.mailbox().area().touches() == 0 {
            std::thread::yield_now();
        }
    }
    let begun = Instant::now();
    let mut least = [0; 2];
    for round in 0..count {
        zap(round);
        if round == count / 2 {
            least = [0, 1].map(|vcpu: usize| bare.machine.vcpus()[vcpu].mailbox().area().touches());
        }
    }
    let taken = begun.elapsed();
    for vcpu in 0..2 {
        bare.machine.vcpus()[vcpu].mailbox().area().request_stop();
    }
    let written = bare.wait(0).visits;
    let locked = bare.wait(1).visits;
    let found = bare.verify(1);
    assert_eq!(found.wrong_pages, 0, "a page lost its content");
    assert_eq!(found.lane_sums[0], written, "a plain write was lost");
    assert_eq!(found.locked_sum, locked, "a locked add was lost or torn");
    // Both were at work all the time: neither half of the zaps passed without touches.
    assert!(
        least[0] > 0 && least[1] > 0 && written > least[0] && locked > least[1],
        "{least:?} {written} {locked}"
    );
    println!("    {count} zaps in {taken:.1?}, {written} writes, {locked} locked adds");
}

fn slots(bare: &Bare, method: ZapMethod) -> KvmSlots {
    KvmSlots::new(bare.machine.core().clone(), method, Accounting::Off)
}

/// A seeded page of the arena.
fn page(bare: &Bare, random: &mut SplitMix64) -> u64 {
    random.below(bare.config.arena / PAGE_SIZE)
}

fn under_slot_zaps_and_toggles() {
    let bare = Bare::start(VmConfig { granule: 64 << 10, ..config(2, 2, Backing::Base4k) });
    let arena = bare.machine.core().arena();
    arena.seam(arena.range()).unwrap();
    let (memslot, toggle) = (slots(&bare, ZapMethod::Memslot), slots(&bare, ZapMethod::Protect));
    let mut random = SplitMix64(1);
    hammer(&bare, zaps(), |round| {
        let range = bare.pages(page(&bare, &mut random), 1);
        if round % 2 == 0 {
            memslot.zap(range)
        } else {
            toggle.zap(range)
        };
    });
}

fn under_slot_zaps_with_the_quirk() {
    let quirk = VmConfig { slot_zap_all_quirk: true, ..config(2, 4, Backing::Base4k) };
    let bare = Bare::start(quirk);
    let memslot = slots(&bare, ZapMethod::Memslot);
    let mut random = SplitMix64(2);
    hammer(&bare, zaps() / 20, |_| {
        memslot.zap(bare.pages(page(&bare, &mut random), 1));
    });
}

fn under_unmapping() {
    let bare = Bare::start(config(2, 2, Backing::Memfd));
    let unmap = slots(&bare, ZapMethod::Unmap);
    let mut random = SplitMix64(3);
    hammer(&bare, zaps(), |_| {
        unmap.zap(bare.pages(page(&bare, &mut random), 1));
    });
}

/// The guest's code, stacks and page tables lose their translations as well.
fn under_zaps_of_low_memory_too() {
    let bare = Bare::start(config(2, 2, Backing::Base4k));
    let core = bare.machine.core().clone();
    let memslot = slots(&bare, ZapMethod::Memslot);
    hammer(&bare, zaps() / 20, |_| {
        for region in core.regions() {
            memslot.zap(region.range());
        }
    });
}

/// A device writes to low memory by the host's mapping, and would die of a page that is read-only for a moment. The arena
/// is the guest's alone.
fn low_memory_is_not_protected_while_the_host_writes_to_it() {
    let bare = Bare::start(config(1, 2, Backing::Base4k));
    let core = bare.machine.core();
    let low = core.regions().find(|region| !std::ptr::eq(*region, core.arena())).unwrap();
    let toggle = slots(&bare, ZapMethod::Protect);
    let (send, ended) = channel();
    std::thread::scope(|scope| {
        let writes = core.shared.host_writes.read().unwrap();
        toggle.zap(bare.pages(0, 1));
        scope.spawn(|| {
            toggle.zap(low.range());
            send.send(()).unwrap();
        });
        let early = ended.recv_timeout(Duration::from_millis(200));
        drop(writes);
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "protected under a device's hands");
        ended.recv_timeout(PATIENCE).expect("it goes on when the device is done");
    });
}
