//! The rate that the kernel tap sustains, and its cost.
//!
//! | part | load | condition |
//! | --- | --- | --- |
//! | synthetic | a thread writes 1,000,000 records a second for 5 s into a ring such as the kernel fills | none lost |
//! | pageout | 64 MiB of 4 KiB pages that a guest has mapped paged out to zram, tap on and off in turns | median of the pairs' ratios at most 1.05, every range seen |
//!
//! The exit code tells whether both conditions held. The zram device is made for the bench and removed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_abi::order::{Task, Walk, WorkOrder};
use guest_mem::{Backing, Hva, HvaRange, Operation, PageScanner, drain_lru, perform};
use host::Tracefs;
use machine::Kvm;
use machine::{Machine, VmConfig};
use tap::synthetic::synthetic;
use tap::{Collector, Event, Interest, Layout, Sample, Tap, Via, What};

const RATE: u64 = 1_000_000;
const SECONDS: u64 = 5;
/// Records between two readings of the clock.
const BATCH: u64 = 500;

const ARENA: u64 = 64 << 20;
/// Pairs for the tap that a run uses, enough for a median with little noise; and for the others.
const PAIRS: [usize; 2] = [121, 41];
const BOUND: f64 = 1.05;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    // Without this argument it is a test run, without measurements.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let held = [synthetic_load(), paired_pageouts()];
    if held.iter().all(|held| *held) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The formats of the running kernel, or of a similar one if they cannot be read.
fn layout() -> Layout {
    let read = Tracefs::open().ok().and_then(|tracefs| Layout::read(&tracefs, Interest::default()).ok());
    read.unwrap_or_else(|| {
        let text = "name: kvm_unmap_hva_range\nID: 27\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
            \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\
            \tfield:unsigned long start;\toffset:8;\tsize:8;\tsigned:0;\n\
            \tfield:unsigned long end;\toffset:16;\tsize:8;\tsigned:0;\n";
        Layout::of(Interest::default(), |_| Ok(text.to_owned())).expect("a format of the kernel's")
    })
}

fn synthetic_load() -> bool {
    let layout = layout();
    let id = layout.listened()[0].id;
    let watched = HvaRange::with_len(Hva::new(1 << 40), 1 << 30).expect("far from the end");
    let (source, mut writer) = synthetic(tap::perf::RING).expect("a ring's memory");
    // Room for the events of a second: this thread may wait long for a processor.
    let collector = Collector::start(Box::new(source), layout, &[watched], RATE as usize).expect("a thread");
    let total = RATE * SECONDS;
    let begun = Instant::now();
    let written = std::thread::spawn(move || {
        let (mut raw, mut refused) = ([0u8; 24], 0u64);
        raw[..2].copy_from_slice(&id.to_le_bytes());
        for number in 0..total {
            if number % BATCH == 0 {
                let due = begun + Duration::from_nanos(number * 1_000_000_000 / RATE);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let start = watched.start().get() + number % (1 << 18) * PAGE_SIZE;
            raw[8..16].copy_from_slice(&start.to_le_bytes());
            raw[16..24].copy_from_slice(&(start + PAGE_SIZE).to_le_bytes());
            refused += u64::from(!writer.push(&Sample { time_ns: number, pid: 1, tid: 1, raw: &raw }, 0));
        }
        (refused, begun.elapsed())
    });
    let (mut events, mut taken) = (Vec::with_capacity(RATE as usize), 0);
    while !written.is_finished() {
        std::thread::sleep(Duration::from_millis(50));
        collector.take(&mut events).expect("the ring is sound");
        taken += events.len() as u64;
        events.clear();
    }
    let busy = reader_ns();
    let (refused, spent) = written.join().expect("the writer does not panic");
    let seen = collector.take(&mut events).expect("the ring is sound");
    taken += events.len() as u64;
    let share = 100.0 * busy as f64 / spent.as_nanos() as f64;
    println!(
        "tap: synthetic: {total} records in {:.2} s ({:.0} a second), {taken} taken, {} lost; the reader took {share:.1} % of a CPU",
        spent.as_secs_f64(),
        total as f64 / spent.as_secs_f64(),
        refused.max(seen.lost),
    );
    taken == total && refused == 0
}

/// The CPU time of the reader thread, nanoseconds.
fn reader_ns() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted").flatten();
    let named =
        |path: &std::path::Path| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == "tap");
    let ran = tasks.map(|task| task.path()).filter(|path| named(path)).filter_map(|path| {
        fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok()
    });
    ran.sum()
}

/// A guest whose arena is paged out repeatedly.
struct Guest {
    machine: Machine,
    scanner: PageScanner,
}

impl Guest {
    fn start() -> Self {
        let config = VmConfig {
            vcpus: 1,
            arena: ARENA,
            backing: Backing::Base4k,
            granule: 2 << 20,
            slot_zap_all_quirk: true,
        };
        let kvm = Kvm::open().expect("/dev/kvm opens");
        let machine = Machine::start(&kvm, &config, resources::GUEST).expect("the machine starts");
        machine.wait_up().expect("the guest comes up");
        Self { machine, scanner: PageScanner::new().expect("our own pagemap opens") }
    }

    /// Has the guest write every page, and pages all of them out; returns the time, this thread's CPU time, and whether all pages
    /// left.
    fn page_out(&mut self, generation: u64) -> (Duration, Duration, bool) {
        let order = WorkOrder {
            start: ARENA_GPA,
            len: ARENA,
            walk: Walk::Sequential,
            task: Task::Fill { generation },
        };
        self.machine.vcpus()[0].mailbox().submit(&order).expect("the vCPU is idle");
        self.machine.wait(0, PATIENCE).expect("the guest lives");
        drain_lru().expect("the LRU batches can be flushed");
        let arena = self.machine.core().arena();
        let (begun, ran) = (Instant::now(), thread_time());
        perform(arena, Operation::PageOut, arena.range()).expect("it is paged out");
        let (spent, ran) = (begun.elapsed(), thread_time() - ran);
        let left = self.scanner.counts(arena, arena.range()).expect("pagemap can be read");
        (spent, ran, left.resident() == 0)
    }
}

/// The CPU time of this thread.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Whether the tap that a run opens is within the bound, and no tap misses a range.
fn paired_pageouts() -> bool {
    let _swap = match test_memory::ZramSwap::create(256 << 20, None) {
        Ok(swap) => swap,
        Err(error) => {
            println!("SKIPPED: pageout: no swap: {error}");
            return true;
        }
    };
    let mut guest = Guest::start();
    // Once before: swap slots and zram's memory are allocated.
    guest.page_out(1);
    let vias = [Via::Bpf, Via::Perf];
    // The bound is for the first tap that opens, which a run uses.
    let mut bound = Some(BOUND);
    let held: Vec<bool> = vias.into_iter().map(|via| pageouts_by(via, &mut guest, &mut bound)).collect();
    held.iter().all(|held| *held)
}

fn pageouts_by(via: Via, guest: &mut Guest, bound: &mut Option<f64>) -> bool {
    let (name, watched) = (via.name(), guest.machine.core().arena().range());
    let interest = Interest { causes: true, ..Interest::default() };
    // As in a run.
    let open = || Tap::around(via, interest, watched, 1 << 16).map(|(tap, _)| tap);
    let opening = Instant::now();
    if let Err(error) = open() {
        println!("SKIPPED: pageout by {name}: no tap: {error}");
        return true;
    }
    let opening = opening.elapsed();
    let bound = bound.take();
    let pairs = PAIRS[usize::from(bound.is_none())];
    let (mut ratios, mut on_ms, mut off_ms, mut complete) = (Vec::new(), Vec::new(), Vec::new(), true);
    let mut busy = Vec::new();
    for pair in 0..pairs {
        let (mut spent, mut ran) = ([Duration::ZERO; 2], [Duration::ZERO; 2]);
        for turn in 0..2 {
            // The order alternates against drift.
            let on = (pair + turn) % 2 == 0;
            let tap = on.then(|| open().expect("it opened before"));
            let (time, thread, all_left) = guest.page_out(2 + pair as u64);
            if let Some(tap) = tap {
                let mut events = Vec::new();
                let seen = tap.take(&mut events).expect("the rings are sound");
                let page =
                    |event: &&Event| matches!(event.what, What::Range(range) if range.len() == PAGE_SIZE);
                let ranges = events.iter().filter(page).count() as u64;
                complete &= seen.lost == 0 && (!all_left || ranges >= ARENA / PAGE_SIZE);
            }
            (spent[usize::from(on)], ran[usize::from(on)]) = (time, thread);
        }
        ratios.push(spent[1].as_secs_f64() / spent[0].as_secs_f64());
        busy.push(ran[1].as_secs_f64() / ran[0].as_secs_f64());
        off_ms.push(spent[0].as_secs_f64() * 1e3);
        on_ms.push(spent[1].as_secs_f64() * 1e3);
    }
    let (ratio, off, on) = (median(&mut ratios), median(&mut off_ms), median(&mut on_ms));
    let held = bound.is_none_or(|bound| ratio <= bound);
    println!(
        "tap: pageout of 64 MiB in 4 KiB pages, by {name}: off {off:.1} ms, on {on:.1} ms; median of {pairs} paired ratios \
         {ratio:.3}, half of them between {:.3} and {:.3}{}, of the thread's own time {:.3}; every range seen: {complete}; opened and closed in {:.1} ms",
        ratios[pairs / 4],
        ratios[3 * pairs / 4],
        bound.map_or(String::new(), |bound| format!(" (bound {bound})")),
        median(&mut busy),
        opening.as_secs_f64() * 1e3,
    );
    held && complete
}

/// Sorts the values; returns their median.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
