//! The control area: how one vCPU and its VMM talk through shared memory.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::arch::FaultFrame;
use crate::layout::{AREA_SIZE, MAX_VCPUS, PAGE_SIZE, STALLS_OFFSET, TABLE_ENTRIES, TABLE_OFFSET};
use crate::order::RawOrder;

/// A touch that took long: where, when, how long.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// Guest physical address of the page.
    pub gpa: u64,
    /// The vCPU's TSC when the touch began.
    pub tsc: u64,
    /// TSC cycles from then until the touch was done.
    pub cycles: u64,
    /// Which visit of the order it was, from 0.
    pub visit: u64,
}

/// Entries of the stall ring.
pub const STALL_ENTRIES: u64 = (AREA_SIZE - STALLS_OFFSET) / size_of::<Stall>() as u64;

/// How an order ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// 0 done; 1 the order made no sense and nothing was done.
    pub refused: u64,
    /// Page visits made.
    pub visits: u64,
    /// Touches at or above the threshold, in the ring or not.
    pub stalls: u64,
    /// TSC at the beginning.
    pub tsc_start: u64,
    /// TSC at the end.
    pub tsc_end: u64,
    /// Pages found wrong by a verify.
    pub wrong_pages: u64,
    /// The first wrong word: its guest physical address, 0 if none.
    pub wrong_gpa: u64,
    /// What it should have held.
    pub wrong_expected: u64,
    /// What it held.
    pub wrong_found: u64,
    /// Sum of the locked counters of the pages verified.
    pub locked_sum: u64,
    /// Sum of each lane over the pages verified.
    pub lane_sums: [u64; MAX_VCPUS as usize],
}

/// Bytes kept of a panic message.
pub const MESSAGE_BYTES: usize = 512;

/// The control block, at the beginning of a control area. Words only: any bit pattern is a value.
#[repr(C)]
pub struct Block {
    order: RawOrder,
    outcome: Outcome,
    stop: u64,
    touches: u64,
    stalls_recorded: u64,
    stalls_taken: u64,
    stalls_dropped: u64,
    message_len: u64,
    message: [u8; MESSAGE_BYTES],
}

/// Where in the control area the fault stack ends; it grows down from there.
pub const FAULT_STACK_TOP: u64 = PAGE_SIZE;

const _: () = assert!(
    size_of::<Block>() + 8 * size_of::<FaultFrame>() < PAGE_SIZE as usize,
    "the control block leaves no room for the fault stack"
);

/// The ring was not left as the other side's rules demand: more entries than it has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingCorrupt {
    /// The producer's count.
    pub recorded: u64,
    /// The consumer's count.
    pub taken: u64,
}

/// One vCPU's control area, from either side. Not to be copied: the owner of the mapping lends it.
///
/// ```compile_fail,E0507
/// fn two(area: &guest_abi::block::ControlArea) -> guest_abi::block::ControlArea {
///     *area
/// }
/// ```
#[derive(Debug)]
pub struct ControlArea(*mut u8);

// SAFETY: the pointer is only used for volatile and atomic access to memory that both sides may change at any
// time; which thread does so makes no difference.
unsafe impl Send for ControlArea {}
// SAFETY: as for `Send`.
unsafe impl Sync for ControlArea {}

impl ControlArea {
    /// # Safety
    /// `base` is page aligned, and [`AREA_SIZE`] bytes from it stay mapped readable and writable for as long
    /// as the value is used.
    pub const unsafe fn new(base: *mut u8) -> Self {
        Self(base)
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        debug_assert!(offset + size_of::<T>() <= AREA_SIZE as usize);
        self.0.wrapping_add(offset).cast()
    }

    fn read<T: Copy>(&self, offset: usize) -> T {
        // SAFETY: inside the area by `at`'s check on constant or bounded offsets; every `T` used here is made
        // of words, for which any bit pattern is a value; volatile tolerates the other side's writes.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    fn write<T: Copy>(&self, offset: usize, value: T) {
        // SAFETY: as in `read`.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    fn atomic(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: aligned, inside the area, and both sides access these words only atomically.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }

    /// The order as it stands.
    pub fn order(&self) -> RawOrder {
        self.read(offset_of!(Block, order))
    }
    /// Leaves an order for the vCPU, and takes back an earlier request to stop.
    pub fn set_order(&self, order: RawOrder) {
        self.write(offset_of!(Block, order), order);
        self.atomic(offset_of!(Block, stop)).store(0, Ordering::Release);
    }
    /// The outcome as it stands.
    pub fn outcome(&self) -> Outcome {
        self.read(offset_of!(Block, outcome))
    }
    /// Leaves the outcome for the VMM.
    pub fn set_outcome(&self, outcome: Outcome) {
        self.write(offset_of!(Block, outcome), outcome);
    }

    /// Whether the vCPU was asked to end its order.
    pub fn stop_requested(&self) -> bool {
        self.atomic(offset_of!(Block, stop)).load(Ordering::Acquire) != 0
    }
    /// Asks the vCPU to end its order at the next touch.
    pub fn request_stop(&self) {
        self.atomic(offset_of!(Block, stop)).store(1, Ordering::Release);
    }

    /// Touches made so far by the order in progress, then by the last one.
    pub fn touches(&self) -> u64 {
        self.atomic(offset_of!(Block, touches)).load(Ordering::Relaxed)
    }
    /// Publishes the number of touches made.
    pub fn set_touches(&self, touches: u64) {
        self.atomic(offset_of!(Block, touches)).store(touches, Ordering::Relaxed);
    }

    /// Entry `index` of the table; 0 beyond its end.
    pub fn table(&self, index: u64) -> u32 {
        if index >= TABLE_ENTRIES {
            return 0;
        }
        self.read((TABLE_OFFSET + 4 * index) as usize)
    }
    /// Writes entry `index` of the table. Returns whether there is such an entry.
    pub fn set_table(&self, index: u64, value: u32) -> bool {
        if index >= TABLE_ENTRIES {
            return false;
        }
        self.write((TABLE_OFFSET + 4 * index) as usize, value);
        true
    }

    /// Records a stall, or counts it as dropped if the ring is full. The producer's side.
    pub fn push_stall(&self, stall: Stall) {
        let recorded = self.atomic(offset_of!(Block, stalls_recorded));
        let taken = self.atomic(offset_of!(Block, stalls_taken)).load(Ordering::Acquire);
        let count = recorded.load(Ordering::Relaxed);
        if count.wrapping_sub(taken) >= STALL_ENTRIES {
            self.atomic(offset_of!(Block, stalls_dropped)).fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.write(Self::stall_offset(count), stall);
        recorded.store(count.wrapping_add(1), Ordering::Release);
    }

    /// Takes every stall in the ring, oldest first. The consumer's side.
    ///
    /// # Errors
    /// The producer's count is impossible: nothing is taken.
    pub fn take_stalls(&self, mut each: impl FnMut(Stall)) -> Result<(), RingCorrupt> {
        let recorded = self.atomic(offset_of!(Block, stalls_recorded)).load(Ordering::Acquire);
        let consumer = self.atomic(offset_of!(Block, stalls_taken));
        let taken = consumer.load(Ordering::Relaxed);
        let waiting = recorded.wrapping_sub(taken);
        if waiting > STALL_ENTRIES {
            return Err(RingCorrupt { recorded, taken });
        }
        for index in 0..waiting {
            each(self.read(Self::stall_offset(taken.wrapping_add(index))));
        }
        consumer.store(recorded, Ordering::Release);
        Ok(())
    }

    /// Stalls that found the ring full since the area was made.
    pub fn stalls_dropped(&self) -> u64 {
        self.atomic(offset_of!(Block, stalls_dropped)).load(Ordering::Relaxed)
    }

    const fn stall_offset(count: u64) -> usize {
        (STALLS_OFFSET + (count % STALL_ENTRIES) * size_of::<Stall>() as u64) as usize
    }

    /// Appends to the panic message, as far as there is room.
    pub fn push_message(&self, text: &str) {
        let mut len = self.read::<u64>(offset_of!(Block, message_len)).min(MESSAGE_BYTES as u64) as usize;
        for &byte in text.as_bytes() {
            if len == MESSAGE_BYTES {
                break;
            }
            self.write(offset_of!(Block, message) + len, byte);
            len += 1;
        }
        self.write(offset_of!(Block, message_len), len as u64);
    }
    /// The panic message's bytes, as far as they were written.
    pub fn message(&self) -> ([u8; MESSAGE_BYTES], usize) {
        let len = self.read::<u64>(offset_of!(Block, message_len)).min(MESSAGE_BYTES as u64) as usize;
        (self.read(offset_of!(Block, message)), len)
    }

    /// What ring 0 left on the fault stack.
    pub fn fault_frame(&self) -> FaultFrame {
        self.read(FAULT_STACK_TOP as usize - size_of::<FaultFrame>())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::vec::Vec;

    struct Area(ControlArea, *mut u8);

    impl Area {
        const LAYOUT: Layout = match Layout::from_size_align(AREA_SIZE as usize, 4096) {
            Ok(layout) => layout,
            Err(_) => panic!(),
        };
        fn new() -> Self {
            // SAFETY: the layout is not empty.
            let base = unsafe { alloc_zeroed(Self::LAYOUT) };
            // SAFETY: aligned, that long, and freed only with `self`.
            Self(unsafe { ControlArea::new(base) }, base)
        }
    }

    impl Drop for Area {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(self.1, Self::LAYOUT) }
        }
    }

    #[test]
    fn stalls_come_out_in_order_and_overflow_is_counted() {
        let area = Area::new();
        let stall = |visit| Stall { gpa: visit * 4096, tsc: 1, cycles: 2, visit };
        for visit in 0..STALL_ENTRIES + 3 {
            area.0.push_stall(stall(visit));
        }
        assert_eq!(area.0.stalls_dropped(), 3);
        let mut taken = Vec::new();
        area.0.take_stalls(|s| taken.push(s.visit)).unwrap();
        assert_eq!(taken, (0..STALL_ENTRIES).collect::<Vec<_>>());
        area.0.push_stall(stall(77));
        taken.clear();
        area.0.take_stalls(|s| taken.push(s.visit)).unwrap();
        assert_eq!(taken, [77]);
    }

    #[test]
    fn a_ring_with_an_impossible_count_is_refused() {
        let area = Area::new();
        area.0.atomic(offset_of!(Block, stalls_recorded)).store(u64::MAX, Ordering::Relaxed);
        assert!(area.0.take_stalls(|_| panic!("nothing to take")).is_err());
    }

    #[test]
    fn a_message_is_cut_and_a_hostile_length_is_bounded() {
        let area = Area::new();
        area.0.push_message("out of ");
        area.0.push_message("luck");
        let (bytes, len) = area.0.message();
        assert_eq!(&bytes[..len], b"out of luck");
        area.0.write(offset_of!(Block, message_len), u64::MAX);
        assert_eq!(area.0.message().1, MESSAGE_BYTES);
        area.0.push_message("x");
    }

    #[test]
    fn the_table_has_an_end() {
        let area = Area::new();
        assert!(area.0.set_table(TABLE_ENTRIES - 1, 9));
        assert!(!area.0.set_table(TABLE_ENTRIES, 9));
        assert_eq!((area.0.table(TABLE_ENTRIES - 1), area.0.table(TABLE_ENTRIES)), (9, 0));
    }
}
