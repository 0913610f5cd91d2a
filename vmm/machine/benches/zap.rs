//! What a zap costs, against the bare system calls it is made of, while a vCPU runs.
//!
//! | row | what it times |
//! | --- | --- |
//! | stop | stopping the vCPU and letting it go |
//! | bare slot | the two ioctls alone, with the vCPU already stopped |
//! | slot zap | `KvmSlots` by memslot: all of it |
//! | bare toggle | the two `mprotect` calls alone, on a region with the same seams |
//! | toggle | `KvmSlots` by protection: all of it |
//!
//! All rows take turns on slots and pages of the same state: the guest has touched the whole slot again before
//! each. The ratios printed last are medians of paired rounds, each in an order of its own: a row that follows a slot zap
//! finds KVM's tables freshly made, and takes a tenth longer. Without accounting, since a bare call has none, and once
//! with it, to show what it costs.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_abi::order::{Access, Task, Walk, WorkOrder};
use guest_abi::work::SplitMix64;
use guest_mem::{Backing, HvaRange};
use kvm_bindings::kvm_userspace_memory_region;
use machine::Kvm;
use machine::{Accounting, KvmSlots, Machine, VmConfig, ZapMethod};

const GRANULE: u64 = 2 << 20;
const ARENA: u64 = 8 << 20;
const ROUNDS: usize = 301;
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest whose only vCPU touches its whole arena, over and over.
struct Busy {
    machine: Machine,
    slot: KvmSlots,
    toggle: KvmSlots,
    toggle_counted: KvmSlots,
    page: u64,
}

impl Busy {
    fn start() -> Self {
        let config = VmConfig {
            vcpus: 1,
            arena: ARENA,
            backing: Backing::Base4k,
            granule: GRANULE,
            slot_zap_all_quirk: false,
        };
        let kvm = Kvm::open().expect("/dev/kvm opens");
        let machine = Machine::start(&kvm, &config, resources::GUEST).expect("the machine starts");
        machine.wait_up().expect("the guest comes up");
        let arena = machine.core().arena();
        arena.seam(arena.range()).expect("a few VMAs");
        let task = Task::Touch { access: Access::Write, passes: None, stall_cycles: u64::MAX };
        let order = WorkOrder { start: ARENA_GPA, len: ARENA, walk: Walk::Sequential, task };
        machine.vcpus()[0].mailbox().submit(&order).expect("the vCPU is idle");
        let zap = |method, accounting| KvmSlots::new(machine.core().clone(), method, accounting);
        let slot = zap(ZapMethod::Memslot, Accounting::Off);
        let toggle = zap(ZapMethod::Protect, Accounting::Off);
        let toggle_counted = zap(ZapMethod::Protect, Accounting::On);
        Self { slot, toggle, toggle_counted, machine, page: 0 }
    }

    /// Waits until the guest has touched every page twice: whatever was zapped is mapped again.
    fn settle(&self) {
        let area = self.machine.vcpus()[0].mailbox().area();
        let wanted = area.touches() + 2 * ARENA / PAGE_SIZE;
        while area.touches() < wanted {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Another page each time, never the first of a 2 MiB block, which is its seam.
    fn next_page(&mut self) -> HvaRange {
        self.page = (self.page + 331) % (ARENA / PAGE_SIZE);
        let page = if self.page.is_multiple_of(512) { self.page + 1 } else { self.page };
        self.machine.core().arena().slice(page * PAGE_SIZE, PAGE_SIZE).expect("inside")
    }

    fn stop(&mut self) -> Duration {
        let begun = Instant::now();
        drop(self.machine.core().shared.gate.hold().expect("the vCPUs leave"));
        begun.elapsed()
    }

    fn bare_slot(&mut self) -> Duration {
        let page = self.next_page();
        let core = self.machine.core();
        let slot = core.slots.covering(page)[0];
        let region = |len| kvm_userspace_memory_region {
            slot: slot.id().0,
            flags: 0,
            guest_phys_addr: slot.gpa_range().start().get(),
            memory_size: len,
            userspace_addr: slot.hva_range().start().get(),
        };
        let hold = core.shared.gate.hold().expect("the vCPUs leave");
        let begun = Instant::now();
        for len in [0, slot.len()] {
            // SAFETY: only for the next call.
            let vm = unsafe { core.kvm_vm() };
            // SAFETY: the machine's own slot, deleted and put back over the same memory, vCPUs stopped.
            unsafe { vm.set_user_memory_region(region(len)) }.expect("KVM takes the slot");
        }
        let spent = begun.elapsed();
        drop(hold);
        spent
    }

    fn bare_toggle(&mut self) -> Duration {
        let page = self.next_page();
        // The vCPU must know that an EFAULT in between is ours.
        let _window = self.machine.core().shared.window.open();
        let begun = Instant::now();
        for flags in [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE] {
            // SAFETY: one page of the arena, to which no reference exists.
            let done = unsafe { libc::mprotect(page.start().as_ptr(), page.len() as usize, flags) };
            assert_eq!(done, 0);
        }
        begun.elapsed()
    }

    fn zap(&mut self, of: fn(&Self) -> &KvmSlots) -> Duration {
        let page = self.next_page();
        let begun = Instant::now();
        of(self).zap(page);
        begun.elapsed()
    }
}

type Row = (&'static str, fn(&mut Busy) -> Duration);

const ROWS: [Row; 6] = [
    ("stop", Busy::stop),
    ("bare slot", Busy::bare_slot),
    ("slot zap", |busy| busy.zap(|busy| &busy.slot)),
    ("bare toggle", Busy::bare_toggle),
    ("toggle", |busy| busy.zap(|busy| &busy.toggle)),
    ("toggle, counted", |busy| busy.zap(|busy| &busy.toggle_counted)),
];

fn zap(criterion: &mut Criterion) {
    let mut busy = Busy::start();
    let mut group = criterion.benchmark_group("zap");
    group.sample_size(20);
    for (name, row) in ROWS {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        busy.settle();
                        row(&mut busy)
                    })
                    .sum()
            });
        });
    }
    group.finish();
    paired(&mut busy);
    busy.machine.vcpus()[0].mailbox().area().request_stop();
    busy.machine.wait(0, PATIENCE).expect("the guest lives");
}

/// Every row once a round.
fn paired(busy: &mut Busy) {
    let (mut random, mut order) = (SplitMix64(1), [0, 1, 2, 3, 4, 5]);
    let rounds: Vec<[f64; 6]> = (0..ROUNDS)
        .map(|_| {
            // Fisher and Yates.
            for last in (1..order.len()).rev() {
                order.swap(last, (random.next() % (last as u64 + 1)) as usize);
            }
            let mut round = [0.0; 6];
            for row in order {
                busy.settle();
                round[row] = ROWS[row].1(busy).as_secs_f64() * 1e6;
            }
            round
        })
        .collect();
    let median = |of: &dyn Fn(&[f64; 6]) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2]
    };
    for (index, (name, _)) in ROWS.iter().enumerate() {
        println!("zap: {name:<16} median {:8.1} us", median(&|round| round[index]));
    }
    println!(
        "zap: slot zap / (bare slot + stop)  median of {ROUNDS} rounds {:.2}, of medians {:.2} (bound 1.10)",
        median(&|round| round[2] / (round[0] + round[1])),
        median(&|round| round[2]) / (median(&|round| round[0]) + median(&|round| round[1])),
    );
    println!(
        "zap: toggle / bare toggle           median of {ROUNDS} rounds {:.2}, of medians {:.2} (bound 1.10)",
        median(&|round| round[4] / round[3]),
        median(&|round| round[4]) / median(&|round| round[3]),
    );
}

criterion_group!(benches, zap);
criterion_main!(benches);
