use std::sync::mpsc::channel;
use std::time::Duration;

use guest_mem::waits::{Patience, WAKE};
use guest_mem::{Backing, PAGE_SIZE, PMD_SIZE};

use super::*;
use crate::testing::{LEAST, bare_guest, bare_guest_in, submit_touch, touch_all};
use crate::{Kvm, VmConfig};

/// Of a VM where a slot's zap drops the slot alone, as far as this program knows.
fn listener(method: ZapMethod, backing: Backing) -> KvmSlots {
    let config = VmConfig { backing, ..LEAST };
    let mut core = VmCore::new(&Kvm::open().unwrap(), &config).unwrap();
    core.slot_zap_drops_all = false;
    KvmSlots::new(Arc::new(core), method, Accounting::Off)
}

/// A page in the middle of a region.
fn page_of(region: &Region) -> HvaRange {
    region.slice(5 * PAGE_SIZE, PAGE_SIZE).unwrap()
}

const METHODS: [ZapMethod; 3] = [ZapMethod::Memslot, ZapMethod::Protect, ZapMethod::Unmap];

/// The core notes when faults outside of the arena are to be expected, and only then.
#[test]
#[ignore = "needs: Kvm"]
fn only_a_zap_of_low_memory_is_one() {
    for method in METHODS {
        let listener = listener(method, Backing::Memfd);
        let low_zapped = || listener.core.low_zapped.load(Ordering::Relaxed);
        listener.zap(page_of(listener.core.arena()));
        assert!(!low_zapped(), "{method:?}");
        listener.zap(page_of(&listener.core.low()[0]));
        assert!(low_zapped(), "{method:?}");
    }
}

/// A seam that is made for a toggle has the kernel announce the whole block, once. Nothing else needs one.
#[test]
#[ignore = "needs: Kvm"]
fn a_zap_says_how_many_bytes_it_dropped() {
    for (method, first) in METHODS.into_iter().zip([PMD_SIZE, PMD_SIZE, PAGE_SIZE]) {
        let listener = listener(method, Backing::Memfd);
        let page = page_of(listener.core.arena());
        let second = if method == ZapMethod::Memslot { PMD_SIZE } else { PAGE_SIZE };
        assert_eq!([listener.zap(page).bytes, listener.zap(page).bytes], [first, second], "{method:?}");
    }
}

#[test]
#[ignore = "needs: Kvm"]
fn where_a_slots_zap_drops_all_it_is_all_that_went() {
    let mut listener = listener(ZapMethod::Memslot, Backing::Base4k);
    Arc::get_mut(&mut listener.core).expect("nobody else has it").slot_zap_drops_all = true;
    let all = listener.core.slots.as_slice().iter().map(Memslot::len).sum::<u64>();
    let zapped = listener.zap(page_of(listener.core.arena()));
    assert_eq!((zapped.slots, zapped.bytes), (1, all));
    assert!(listener.core.low_zapped.load(Ordering::Relaxed));
}

/// Every page of an arena that the guest has touched is counted. Without accounting the counts stay empty.
#[test]
#[ignore = "needs: Kvm"]
fn a_zap_counts_the_translations_that_went() {
    for method in [ZapMethod::Memslot, ZapMethod::Protect] {
        let machine = bare_guest();
        let core = machine.core();
        let zap = |accounting| KvmSlots::new(core.clone(), method, accounting).zap(core.arena().range());
        touch_all(&machine);
        assert_eq!(zap(Accounting::Off).sptes_4k, Count::UNKNOWN);
        touch_all(&machine);
        let dropped = || zap(Accounting::On).sptes_4k.get().expect("KVM counts them since Linux 5.14");
        // With its default quirk KVM drops those of low memory, too.
        let pages = LEAST.arena / PAGE_SIZE;
        assert!(dropped() >= pages, "{method:?}");
        assert!(dropped() < pages, "{method:?}: they had gone");
    }
}

/// A slot of two is zapped: without the quirk the other one stays.
#[test]
#[ignore = "needs: Kvm, SlotZap"]
fn without_its_quirk_kvm_drops_one_slot() {
    for quirk in [true, false] {
        let machine = bare_guest_in(&VmConfig { arena: 2 * PMD_SIZE, slot_zap_all_quirk: quirk, ..LEAST });
        let core = machine.core();
        assert_eq!(core.slot_zap_drops_all, quirk);
        touch_all(&machine);
        KvmSlots::new(core.clone(), ZapMethod::Memslot, Accounting::Off).zap(page_of(core.arena()));
        let left = core.stats.leaves().expect("a KVM with the quirk counts them").pages_4k;
        assert_eq!(left < PMD_SIZE / PAGE_SIZE, quirk, "{left} are left");
    }
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

/// A device that writes to low memory would get SIGSEGV or EFAULT from a toggle there. The arena has no devices.
#[test]
#[ignore = "needs: Kvm"]
fn only_a_toggle_of_low_memory_waits_for_devices() {
    let listener = listener(ZapMethod::Protect, Backing::Base4k);
    let (arena, low) = (page_of(listener.core.arena()), page_of(&listener.core.low()[0]));
    let (zapped, zaps) = channel();
    std::thread::scope(|scope| {
        let writing = listener.core.shared.host_writes.read().unwrap();
        scope.spawn(|| {
            for range in [arena, low] {
                listener.zap(range);
                zapped.send(range).unwrap();
            }
        });
        assert_eq!(zaps.recv_timeout(WAKE).expect("the arena's zap waits for nobody"), arena);
        // Long enough for a toggle that does not wait, which takes some 25 us.
        zaps.recv_timeout(Duration::from_millis(50)).expect_err("low memory was read-only under a device");
        drop(writing);
        assert_eq!(zaps.recv_timeout(WAKE).expect("no device writes any more"), low);
    });
}

/// The kernel refuses, so the memory may not be what it was: no vCPU is let in again, and each gets the reason.
#[test]
#[ignore = "needs: Kvm"]
fn a_zap_that_the_kernel_refuses_ends_its_guest() {
    for (method, backing, words) in [
        (ZapMethod::Protect, Backing::Base4k, "mprotect"),
        (ZapMethod::Unmap, Backing::Memfd, "MADV_DONTNEED"),
    ] {
        let listener = listener(method, backing);
        let page = page_of(listener.core.arena());
        match method {
            ZapMethod::Unmap => lock(page),
            _ => map_for_reading(page),
        }
        listener.zap(page);
        match listener.core.shared.gate.shut() {
            Some(CrashKind::Memslots(why)) => assert!(why.contains(words), "{why}"),
            other => panic!("{method:?}: {other:?}"),
        }
    }
}

/// Has the kernel refuse `MADV_DONTNEED`.
fn lock(page: HvaRange) {
    // SAFETY: memory of the test's own; its content stays.
    let done = unsafe { libc::mlock(page.start().as_ptr::<std::ffi::c_void>(), page.len() as usize) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// Has the kernel refuse to make the page writable: a file lies there that is open for reading alone.
fn map_for_reading(page: HvaRange) {
    let (at, len) = (page.start().as_ptr::<std::ffi::c_void>(), page.len() as usize);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(page.len()).unwrap();
    let file = std::fs::File::open(file.path()).unwrap();
    // SAFETY: in place of a page of the test's own memory, to which no reference exists.
    let done = unsafe {
        rustix::mm::mmap(
            at,
            len,
            rustix::mm::ProtFlags::READ,
            rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::FIXED,
            &file,
            0,
        )
    };
    assert_eq!(done.unwrap(), at);
}
