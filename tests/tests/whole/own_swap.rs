//! Swap in user space: pages that go to a store of our own and come back through userfaultfd.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use guest_abi::layout::PAGE_SIZE;
use guest_abi::order::{Access, Task, Walk, WorkOrder};
use guest_abi::work::SplitMix64;
use guest_mem::{Backing, Operation, PMD_SIZE, perform};
use serde_json::Value;
use swap::{
    Codec, CompressedStore, Evictor, FaultAround, HandlerReport, Handlers, Lost, Observer, Options, Served,
    Store, Swapper,
};
use test_memory::stores::{FaultyStore, StoreCall, StoreFault};
use tests::host::Need;
use tests::machine::{Bare, PATIENCE, config};
use tests::place::Place;
use tests::scenario::{self, Scenario};
use tests::{host, record};
use uffd::{Event, PageFault};

crate::tests! {
    a_run_counts_what_it_takes_and_brings_back: [Kvm, Userfault],
    a_huge_page_leaves_and_comes_back_huge: [Kvm, Userfault, HugePages],
    huge_pages_come_back_whole_in_a_run: [Kvm, Userfault, HugePages],
    a_target_is_reached_and_the_hot_pages_stay: [Kvm, Userfault],
    nothing_is_lost_in_a_storm: [Kvm, Userfault],
    a_run_needs_no_swap_device: [Userfault],
    a_full_store_says_why_it_is_full: [Userfault],
    a_guest_never_gets_what_its_store_has_spoiled: [Kvm, Userfault],
}

/// An observer that ignores everything but a lost page.
struct Quiet;

impl Observer for Quiet {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {}
    fn event(&mut self, _event: &Event) {}
    fn lost(&mut self, lost: Lost) {
        panic!("{lost}: {}", lost.why);
    }
}

fn lz4() -> Arc<dyn Store> {
    Arc::new(CompressedStore::new(Codec::Lz4, 1 << 30).unwrap())
}

/// The guest's memory swapped to the LZ4 store.
fn swap(bare: &Bare, around: FaultAround, events: bool) -> (Arc<Swapper>, Handlers) {
    let options = Options { store: lz4(), around, events };
    let swapper = Arc::new(Swapper::attach(bare.machine.core().arena().clone(), options).unwrap());
    let handlers = Handlers::start(&swapper, vec![(Quiet, None), (Quiet, None)]).unwrap();
    (swapper, handlers)
}

/// A scenario that takes memory by our own swap.
fn scenario(uffd: &str) -> Scenario {
    let scenario = scenario::of("16MiB").table("uffd", &[uffd]).backings(&["4k", "memfd"]);
    scenario.policies(&["kernel", "folio", "slot"]).reclaims(&["uffd"]).fill()
}

/// 100 pages leave, and come back by this fault-around.
fn sparse(around: &str) -> Scenario {
    scenario(&format!("fault_around = {around:?}")).sparse(100).refault().sweep()
}

fn rows(scenario: &Scenario, options: &[&str]) -> Vec<Value> {
    record::rows(&Place::of(scenario).record(options)).to_vec()
}

/// 100 pages leave, each announced twice: when it is write-protected, and when it is dropped. 100 come back, each by a
/// fault of its own, or with its neighbours where the window is larger than the page.
fn a_run_counts_what_it_takes_and_brings_back() {
    for (around, at_most) in [("4KiB", 100), ("2MiB", 8), ("adaptive", 100)] {
        for row in rows(&sparse(around), &[]) {
            let exact = [
                ("evicted_bytes", 100 * PAGE_SIZE),
                ("invalidations", 200),
                ("needed_bytes", 200 * PAGE_SIZE),
                ("uffd_returned", 100),
                ("uffd_kept", 0),
                ("integrity_errors", 0),
            ];
            for (key, expected) in exact {
                assert_eq!(row[key], expected, "{key}, {around}: {row:#}");
            }
            let faults = row["uffd_faults"].as_u64().unwrap();
            assert!((1..=at_most).contains(&faults), "{faults} faults, {around}: {row:#}");
            if around == "4KiB" {
                assert_eq!(faults, 100, "{row:#}");
                assert_eq!(row["refaults"], 100, "each is one fault in KVM, too: {row:#}");
            }
            if row["policy"] == "slot" {
                assert_eq!(row["amplification"], 512.0, "{row:#}");
            } else {
                assert_eq!(row["amplification"], 1.0, "{row:#}");
            }
        }
    }
}

/// Neither root nor a device nor KVM: what is left where there is nothing.
fn a_run_needs_no_swap_device() {
    for row in rows(&sparse("4KiB"), &["--backend", "soft"]) {
        assert_eq!((&row["evicted_bytes"], &row["integrity_errors"]), (&(100 * PAGE_SIZE).into(), &0.into()));
        assert_eq!(row["uffd_returned"], 100, "{row:#}");
    }
}

/// 4 MiB of a pattern that does not compress, and room for 2.
fn a_full_store_says_why_it_is_full() {
    let place = Place::of(&scenario("limit = \"2MiB\"").range("4MiB..8MiB", "region").refault().sweep());
    let ended = place.run(&["run", "s.toml", "--json", "--backend", "soft", "--out", "run"]);
    for row in record::rows(&ended.json()) {
        let why = row["could_not_run"].as_str().unwrap();
        for words in
            ["failed: ", "may hold 2 MiB, and ", " pages (", "do not compress", "a pattern that does not"]
        {
            assert!(why.contains(words), "{words} in {why}");
        }
    }
}

/// Passes on which page is lost, and why.
struct Losses(Sender<(u64, String)>);

impl Observer for Losses {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {}
    fn event(&mut self, _event: &Event) {}
    fn lost(&mut self, lost: Lost) {
        self.0.send((lost.page, lost.why.to_string())).unwrap();
    }
}

/// One bit of a stored page is wrong: the page is named, and the guest waits for it rather than see it.
fn a_guest_never_gets_what_its_store_has_spoiled() {
    const SPOILED: u64 = 37;
    let bare = Bare::start(config(1, 2, Backing::Base4k));
    bare.fill(1);
    let flip = StoreFault::Flip(SPOILED * PAGE_SIZE * 8 + 16_001);
    let store = Arc::new(FaultyStore::new(lz4(), &[(StoreCall::Put, 1, flip)]));
    let options = Options { store, around: FaultAround::Fixed(16), events: false };
    let swapper = Arc::new(Swapper::attach(bare.machine.core().arena().clone(), options).unwrap());
    let (send, losses) = channel();
    let handlers = Handlers::start(&swapper, vec![(Losses(send), None)]).unwrap();
    assert_eq!(Evictor::new(&swapper).unwrap().evict(bare.pages(0, 64)).unwrap().pages, 64);
    bare.submit(0, &bare.order(Walk::Sequential, Task::Verify { generation: 1 }));
    let (page, why) = losses.recv_timeout(PATIENCE).expect("the page is said to be lost");
    assert_eq!(page, SPOILED);
    assert!(why.contains("checksum"), "{why}");
    // Given up, it is zeros, and the guest goes on: that page alone is not what it was.
    swapper.discard(bare.pages(SPOILED, 1)).unwrap();
    swapper.userfault().wake(bare.pages(SPOILED, 1)).unwrap();
    assert_eq!(bare.wait(0).wrong_pages, 1);
    handlers.stop().unwrap();
}

/// 2 MiB leave at once, come back at one fault, and the guest maps them by one entry again.
fn a_huge_page_leaves_and_comes_back_huge() {
    let bare = Bare::start(config(1, 8, Backing::Thp));
    bare.fill(1);
    bare.verify(1);
    let (_, huge) = bare.leaves();
    if huge != 4 {
        harness::could_not_run(Need::HugePages, format!("this host gave {huge} of 4 huge pages"));
    }
    let (swapper, handlers) = swap(&bare, FaultAround::Fixed(1), false);
    let evicted = Evictor::new(&swapper).unwrap().evict(bare.pages(0, 1024)).unwrap();
    assert_eq!(evicted.pages, 1024);
    assert_eq!(bare.leaves().1, 2, "two entries of 2 MiB are gone");
    assert_eq!(bare.verify(1).wrong_pages, 0);
    assert_eq!(bare.leaves().1, 4, "and are back");
    let mut report = HandlerReport::default();
    handlers.stop().unwrap().into_iter().for_each(|one| report += one);
    assert_eq!((report.faults, report.returned), (2, 1024), "{report:?}");
}

/// The same by scenario: folio by folio out, and as many faults as huge pages bring it back.
fn huge_pages_come_back_whole_in_a_run() {
    let scenario = scenario("fault_around = \"4KiB\"").backings(&["thp"]);
    for row in rows(&scenario.range("4MiB..12MiB", "folio").refault().sweep(), &[]) {
        if row["achieved"]["thp"] != 1.0 {
            harness::could_not_run(Need::HugePages, format!("this host gave some: {}", row["achieved"]));
        }
        for (key, expected) in
            [("evicted_bytes", 8 << 20), ("uffd_faults", 4), ("uffd_huge_returns", 4), ("refaults", 4)]
        {
            assert_eq!(row[key], expected, "{key}: {row:#}");
        }
    }
}

/// All but 4 of 16 MiB leaves, and not the 64 pages that a loop writes to: what it faulted meanwhile was the watching.
fn a_target_is_reached_and_the_hot_pages_stay() {
    let hot = ["pages = \"all\"", "count = 64", "access = \"write\""];
    let policies = if host::emulated() { &["folio"][..] } else { &["kernel", "folio"] };
    let scenario = scenario("fault_around = \"4KiB\"").policies(policies).step("hot", &hot);
    let idle = ["victims = \"idle\"", "target = \"4MiB\""];
    for row in rows(&scenario.step("reclaim", &idle).stop().refault().sweep(), &[]) {
        let evicted = row["evicted_bytes"].as_u64().unwrap();
        assert!(evicted >= 12 << 20, "{row:#}");
        assert_eq!(row["integrity_errors"], 0, "{row:#}");
        let stays = row["warnings"].to_string().contains("than the target");
        assert!(!stays, "{row:#}");
        // Every page that left came back once, at the latest when all were verified.
        assert_eq!(row["uffd_returned"].as_u64().unwrap() * PAGE_SIZE, evicted, "{row:#}");
    }
}

/// How long a storm lasts: `ZAPSCOPE_LONG=1` makes it ten minutes.
fn storm() -> Duration {
    let short = if host::emulated() { 8 } else { 20 };
    Duration::from_secs(if host::asked_for("ZAPSCOPE_LONG") { 600 } else { short })
}

/// Two vCPUs write without pause, one of them with locked adds; two threads evict what they get; between them pages are
/// moved away and back, and a part that no vCPU writes to is discarded and punched. Every write is there at the end.
fn nothing_is_lost_in_a_storm() {
    let mib = if host::emulated() { 16 } else { 256 };
    for backing in [Backing::Base4k, Backing::Memfd] {
        let bare = Bare::start(config(2, mib, backing));
        bare.fill(1);
        let (swapper, handlers) = swap(&bare, FaultAround::Adaptive, !backing.is_shared());
        // The last block is not the guest's: strangers may throw it away.
        let written = bare.config.arena - PMD_SIZE;
        let order = |task| WorkOrder { len: written, ..bare.order(Walk::Sequential, task) };
        let touch = |access| Task::Touch { access, passes: None, stall_cycles: u64::MAX };
        bare.submit(0, &order(touch(Access::Write)));
        bare.submit(1, &order(touch(Access::LockedAdd)));
        let evicted = evict_and_disturb(&bare, &swapper, written / PAGE_SIZE);
        for vcpu in bare.machine.vcpus() {
            vcpu.mailbox().area().request_stop();
        }
        let (plain, locked) = (bare.wait(0).visits, bare.wait(1).visits);
        bare.submit(0, &order(Task::Verify { generation: 1 }));
        let found = bare.wait(0);
        assert_eq!(found.wrong_pages, 0, "{backing}: a page lost its content");
        assert_eq!(found.lane_sums[0], plain, "{backing}: a plain write was lost");
        assert_eq!(found.locked_sum, locked, "{backing}: a locked add was lost or torn");
        assert!(plain > 0 && locked > 0 && evicted > written / PAGE_SIZE, "{plain} {locked} {evicted}");
        let held = swapper.store().usage().held_bytes >> 20;
        drop(handlers);
        println!(
            "    {backing}: {evicted} pages evicted, {plain} writes, {locked} locked adds, {held} MiB held"
        );
    }
}

/// Evicts by two threads, and disturbs them, for half the length of the storm. How many pages left.
fn evict_and_disturb(bare: &Bare, swapper: &Arc<Swapper>, pages: u64) -> u64 {
    let (stop, evicted) = (AtomicBool::new(false), AtomicU64::new(0));
    let evict = |seed| {
        let mut random = SplitMix64(seed);
        let mut evictor = Evictor::new(swapper).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let len = 1 + random.below(512);
            let first = random.below(pages - len);
            let report = evictor.evict(bare.pages(first, len)).unwrap();
            evicted.fetch_add(report.pages, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|seed| {
            scope.spawn({
                let evict = &evict;
                move || evict(seed)
            })
        });
        let mut random = SplitMix64(9);
        let end = Instant::now() + storm() / 2;
        while Instant::now() < end && threads.iter().all(|thread| !thread.is_finished()) {
            disturb(bare, swapper, pages, &mut random);
        }
        stop.store(true, Ordering::Relaxed);
    });
    evicted.into_inner()
}

/// One disturbance that the swapper must survive.
fn disturb(bare: &Bare, swapper: &Swapper, written: u64, random: &mut SplitMix64) {
    let arena = bare.machine.core().arena();
    let strangers = bare.pages(written + random.below(400), 1 + random.below(100));
    match random.below(2) {
        0 if !arena.backing().is_shared() => {
            // With events the kernel says it, in time.
            perform(arena, Operation::DontNeed, strangers).unwrap();
        }
        _ if arena.backing().is_shared() => {
            swapper.discard(strangers).unwrap();
            perform(arena, Operation::Fallocate, strangers).unwrap();
        }
        _ => {
            Evictor::new(swapper).unwrap().evict(strangers).unwrap();
        }
    }
}
