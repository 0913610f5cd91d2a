//! Nothing is allocated between the hook and its record: counted by the allocator itself.

#![cfg(not(loom))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use guest_mem::{Backing, Gpa, Hva, HvaRange, MapLevel, Memory, Order, Region, SlotTableBuilder, Victim};
use notifier_bridge::{
    Bridge, Cause, HostMmu, Invalidation, Listener, Policy, Shadowing, ShadowingMmu, SharedTlb, Sharing,
    SharingMmu, SoftMmu, Zapped,
};

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread on its way out has no counter any more, and nothing of interest to count.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches a constant-initialised
// thread-local without a destructor, which itself allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, passed on; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise, passed on; the pointer came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.with(Cell::get);
    work();
    ALLOCATIONS.with(Cell::get) - before
}

struct Silent<K>(std::marker::PhantomData<fn() -> K>);

impl Listener for Silent<Shadowing> {
    type Kind = Shadowing;
}
impl Listener for Silent<Sharing> {
    type Kind = Sharing;
}
impl ShadowingMmu for Silent<Shadowing> {
    fn invalidate_range_start(&self, _: HvaRange) -> Zapped {
        Zapped::NOTHING
    }
    fn invalidate_range_end(&self, _: HvaRange) {}
}
impl SharingMmu for Silent<Sharing> {
    fn invalidate_secondary_tlbs(&self, _: HvaRange) {}
}

const LEN: u64 = 8 << 20;

#[test]
fn from_hook_to_record_nothing_is_allocated_under_any_policy() {
    let memory = Arc::new(Region::map(LEN, Backing::Base4k).expect("8 MiB of memory"));
    let ram = memory.range();
    let mut builder = SlotTableBuilder::new(4096);
    builder.add_region(Gpa::new(0), ram, 64 << 10).expect("a valid layout");
    let slots = Arc::new(builder.build().expect("one region does not overlap"));
    let host = || HostMmu::new([memory.clone() as Memory], |_| MapLevel::Pte);
    let soft = Arc::new(SoftMmu::new(host(), Arc::clone(&slots)));
    let mut worker = soft.worker();
    let victim = Victim {
        pages: HvaRange::with_len(Hva::new(ram.start().get() + 0x5000), 16 << 12).expect("inside"),
        order: Order::new(4).expect("64 KiB is an order"),
        level: MapLevel::Pte,
        anonymous: true,
    };

    for &policy in Policy::ALL {
        let bridge = Bridge::new(policy, Arc::clone(&slots))
            .shadowing(Arc::new(Silent::<Shadowing>(std::marker::PhantomData)))
            .shadowing(soft.clone())
            .sharing(Arc::new(Silent::<Sharing>(std::marker::PhantomData)))
            .sharing(Arc::new(SharedTlb::new(host(), 64)));
        let mut records = Vec::with_capacity(64);
        let out = Invalidation { cause: Cause::PageOut, victim, vma: ram };
        let made = allocations_of(|| {
            for page in 0..64 {
                worker.access(Gpa::new(page << 12), true, |_, _| ()).expect("RAM");
                bridge.invalidate(&mut records, &out, || ());
            }
        });
        assert_eq!(made, 0, "{policy}");
        assert_eq!(records.len(), 64, "{policy}");
    }
}

#[test]
fn the_counter_does_count() {
    assert_eq!(allocations_of(|| drop(std::hint::black_box(Box::new(7)))), 1);
}
