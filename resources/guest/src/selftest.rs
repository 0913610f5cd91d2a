//! What the guest does under a VMM that knows nothing of control areas: fill and verify the memory it was
//! given, say so on the serial port, and reset the machine.

use core::convert::Infallible;
use core::fmt::{self, Write};

use guest_abi::block::Stall;
use guest_abi::layout::CONTROL_GPA;
use guest_abi::order::{Task, Walk, WorkOrder};
use guest_abi::page::PagePtr;
use guest_abi::work::{self, Machine};

use crate::arch;

/// At most this much memory is tested.
const MOST: u64 = 256 << 20;

/// Tests memory and ends.
pub fn run(start_info: u32) -> ! {
    // The control areas' place is free here; memory from there to 4 GiB is identity mapped.
    match arch::largest_ram(start_info, CONTROL_GPA, 1 << 32) {
        Some((start, len)) => test(start.next_multiple_of(4096), len.min(MOST) & !4095),
        None => say(format_args!("zapscope guest: no memory map with RAM above 4 MiB\n")),
    }
    loop {
        arch::reset();
    }
}

fn test(start: u64, len: u64) {
    let order = |task| WorkOrder { start, len: len.saturating_sub(4096), walk: Walk::Sequential, task };
    let Ok(_) = work::run(&mut Alone, 0, &order(Task::Fill { generation: 1 }));
    let Ok(outcome) = work::run(&mut Alone, 0, &order(Task::Verify { generation: 1 }));
    say(format_args!(
        "zapscope guest: {} pages filled and verified from {start:#x}, {} wrong\n",
        outcome.visits, outcome.wrong_pages
    ));
}

fn say(text: fmt::Arguments<'_>) {
    // The serial port takes every byte.
    let _ = Serial.write_fmt(text);
}

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(arch::say);
        Ok(())
    }
}

/// Memory without an audience: no control area, so nothing is timed, kept or stopped.
struct Alone;

impl Machine for Alone {
    type Fault = Infallible;

    fn page<R>(&mut self, gpa: u64, _write: bool, with: impl FnOnce(PagePtr) -> R) -> Result<R, Infallible> {
        // SAFETY: the memory map calls it RAM, and the first 4 GiB are identity mapped.
        Ok(with(unsafe { PagePtr::new(gpa as *mut u64) }))
    }
    fn tsc(&self) -> u64 {
        arch::tsc()
    }
    fn table(&self, _index: u64) -> u32 {
        0
    }
    fn stop_requested(&self) -> bool {
        false
    }
    fn touched(&mut self, _total: u64) {}
    fn stalled(&mut self, _stall: Stall) {}
}
