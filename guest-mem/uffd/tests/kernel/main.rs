//! The userfaultfd protocol on a real kernel: faults of other threads are served, events arrive when they should,
//! and every errno that a handler must tell apart is provoked.
//!
//! Memory that a test's thread waits for is given up by dropping the [`Userfault`]: it is made inside the scope of
//! the threads, so that a test that fails ends instead of hanging.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod errors;
mod events;
mod faults;
mod moves;
mod waiting;

use std::process::ExitCode;

use guest_mem::{Backing, HvaRange, PAGE_SIZE, Region};
use uffd::{Event, EventBuffer, Features, Modes, Stop, Userfault, Waiter, Woken};

const MISSING: Modes = Modes { missing: true, minor: false, write_protect: false };
const PROTECTED: Modes = Modes { missing: true, minor: false, write_protect: true };

/// A descriptor with these features.
fn open(features: Features) -> Userfault {
    Userfault::open(features).unwrap()
}

/// 2 MiB of base pages, none of them there.
fn memory() -> Region {
    Region::map(2 << 20, Backing::Base4k).unwrap()
}

/// Pages of the region by number.
fn page(region: &Region, index: u64) -> HvaRange {
    test_memory::pages(region, index, 1)
}

/// Pages' worth of bytes, each page full of its own number.
fn content(pages: u64) -> Vec<u8> {
    (0..pages * PAGE_SIZE).map(|at| (at / PAGE_SIZE) as u8 + 1).collect()
}

/// The word that a page of [`content`] begins with.
fn word(page: u64) -> u64 {
    u64::from_ne_bytes([page as u8 + 1; 8])
}

/// A descriptor's only reader.
struct Reader<'a> {
    userfault: &'a Userfault,
    waiter: Waiter,
    buffer: EventBuffer,
    /// Never raised; the waiter wants one.
    _stop: Stop,
}

impl<'a> Reader<'a> {
    fn of(userfault: &'a Userfault) -> Self {
        let stop = Stop::new().unwrap();
        let waiter = Waiter::new(userfault, &stop).unwrap();
        Self { userfault, waiter, buffer: EventBuffer::new(16), _stop: stop }
    }

    /// Waits until there is something to read, and leaves it there.
    fn wait(&self) {
        assert_eq!(self.waiter.wait().unwrap(), Woken::Events);
    }

    /// The next message.
    fn next(&mut self) -> Event {
        while self.buffer.is_empty() {
            self.wait();
            self.userfault.read_events(&mut self.buffer).unwrap();
        }
        self.buffer.pop().unwrap().unwrap()
    }
}

fn main() -> ExitCode {
    let all = [errors::tests(), events::tests(), faults::tests(), moves::tests(), waiting::tests()];
    harness::main("userfaultfd on this kernel", all.into_iter().flatten().collect())
}
