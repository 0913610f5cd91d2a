//! What a page costs that comes by userfaultfd: ours against the least there can be and against the usual design.
//!
//! ```text
//!   vCPU writes ─> fault in KVM ─> handler ─> UFFDIO_COPY of a window ─> vCPU goes on        guest.rs, handlers.rs
//!   1 or 2 vCPUs x 4k, thp x windows of 1 to 512 pages: bare, ours, usual take turns         rounds.rs
//! ```
//!
//! The guest is up before its memory is registered; each turn begins with an empty arena. A vCPU and its
//! handler share a processor. Ratios are medians over rounds in which all took a turn; `kernel` is the same touch without
//! a userfaultfd.
//!
//! `cargo bench -p vmm --bench userfault [-- cells | adaptive | evict | shared | rate1 | rate2]` runs the first four, or
//! those named.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

mod evict;
mod guest;
mod handlers;
mod rounds;
mod shared;

use std::time::Duration;

use guest_mem::{Backing, PAGE_SIZE};
use swap::FaultAround;

use guest::{ARENA, Guest, Order};
use handlers::{Ours, Plain, lz4};
use rounds::Rounds;

const BACKINGS: [Backing; 2] = [Backing::Base4k, Backing::Thp];
const ROUNDS: usize = 11;
/// Where a round takes milliseconds: enough that the median holds still beside whatever else runs here.
const SHORT_ROUNDS: usize = 41;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    // `cargo test --benches` starts it without: that it builds is all there is to see then.
    let bench = std::env::args().any(|argument| argument == "--bench");
    let wanted = |name: &str| (bench && asked.is_empty()) || asked.iter().any(|one| one == name);
    let parts: [(&str, fn()); 4] =
        [("cells", cells), ("adaptive", adaptive), ("evict", evict::evict), ("shared", shared::shared)];
    parts.iter().filter(|(name, _)| wanted(name)).for_each(|(_, part)| part());
    // Only when asked for: what a script compares with.
    for vcpus in [1, 2] {
        if asked.contains(&format!("rate{vcpus}")) {
            rate(vcpus);
        }
    }
}

/// Pages a second at one page a fault, once.
fn rate(vcpus: u32) {
    let guest = Guest::start(vcpus, Backing::Base4k);
    let len = ARENA / 4;
    let took = ours(&guest, FaultAround::Fixed(1), len, Order::Sequential);
    println!("rate: {:.0} pages/s", (len / PAGE_SIZE) as f64 / took.as_secs_f64());
}

/// How much is touched: less where each page takes a fault.
fn len(pages: u32) -> u64 {
    if pages == 1 { ARENA / 8 } else { ARENA }
}

/// One turn of plain system calls.
fn plain(guest: &Guest, start: fn(&Guest, u64) -> Plain, pages: u32, len: u64) -> Duration {
    guest.empty();
    let handlers = start(guest, u64::from(pages) * PAGE_SIZE);
    let took = guest.touch(len, Order::Sequential);
    assert_eq!(handlers.stop(), len / PAGE_SIZE / u64::from(pages), "each window is one fault");
    took
}

/// One turn of ours.
fn ours(guest: &Guest, around: FaultAround, len: u64, order: Order) -> Duration {
    guest.empty();
    let handlers = Ours::start(guest, around, lz4());
    let took = guest.touch(len, order);
    let (faults, pages) = handlers.stop();
    assert!(faults > 0 && pages >= len / PAGE_SIZE, "{pages} pages by {faults} faults");
    took
}

/// Without a userfaultfd.
fn kernel(guest: &Guest, len: u64) -> Duration {
    guest.empty();
    guest.touch(len, Order::Sequential)
}

fn cells() {
    println!("Sequential first touch (write), us a page; ratios: medians of paired rounds (middle half)");
    println!(
        "{:>5} {:>4} {:>6} | {:>7} {:>7} {:>7} {:>7} {:>7} | {:>19} {:>19} {:>19}",
        "vCPUs",
        "",
        "window",
        "bare",
        "ours",
        "usual",
        "here",
        "kernel",
        "ours/bare",
        "usual/ours",
        "usual here/ours"
    );
    let mut worst: f64 = 0.0;
    for vcpus in [1, 2] {
        for backing in BACKINGS {
            let guest = Guest::start(vcpus, backing);
            for pages in [1, 16, 64, 512] {
                let len = len(pages);
                let rounds = Rounds::<5>::run(SHORT_ROUNDS, len / PAGE_SIZE, |who| match who {
                    0 => plain(&guest, Plain::bare, pages, len),
                    1 => ours(&guest, FaultAround::Fixed(pages), len, Order::Sequential),
                    2 => plain(&guest, Plain::usual, pages, len),
                    3 => plain(&guest, Plain::usual_here, pages, len),
                    _ => kernel(&guest, len),
                });
                let [bare, usual, here] = [(1, 0), (2, 1), (3, 1)].map(|(who, to)| rounds.compared(who, to));
                println!(
                    "{vcpus:>5} {:>4} {pages:>6} | {:>7.2} {:>7.2} {:>7.2} {:>7.2} {:>7.2} | {bare:>19} {usual:>19} {here:>19}",
                    backing.to_string(),
                    rounds.of(0),
                    rounds.of(1),
                    rounds.of(2),
                    rounds.of(3),
                    rounds.of(4),
                );
                worst = worst.max(rounds.ratio(1, 0));
            }
        }
    }
    println!("ours/bare, worst cell: {worst:.2} (bound 1.10)");
    println!(
        "\"here\" is the usual design where the scheduler puts its one thread beside the first vCPU: with one vCPU the \
         same system calls and the same two switches as ours; anywhere else it is the usual column.\n"
    );
}

fn adaptive() {
    println!(
        "Adaptive fault-around against one page a fault, us a page; medians of paired rounds (middle half)"
    );
    println!(
        "{:>5} {:>4} {:>10} | {:>8} {:>8} | {:>22}",
        "vCPUs", "", "touch", "1 page", "adaptive", "ahead"
    );
    for vcpus in [1, 2] {
        for backing in BACKINGS {
            let guest = Guest::start(vcpus, backing);
            for order in [Order::Sequential, Order::Shuffled] {
                let len = len(1);
                let rounds = Rounds::<2>::run(SHORT_ROUNDS, len / PAGE_SIZE, |who| {
                    let around = [FaultAround::Fixed(1), FaultAround::Adaptive][who];
                    ours(&guest, around, len, order)
                });
                println!(
                    "{vcpus:>5} {:>4} {:>10} | {:>8.2} {:>8.2} | {:>22}",
                    backing.to_string(),
                    match order {
                        Order::Sequential => "sequential",
                        Order::Shuffled => "shuffled",
                    },
                    rounds.of(0),
                    rounds.of(1),
                    rounds.compared(0, 1),
                );
            }
        }
    }
    println!();
}
