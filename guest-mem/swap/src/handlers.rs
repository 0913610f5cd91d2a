//! Threads that serve faults and act on events.
//!
//! ```text
//!   wait ──> read messages ──> faults: Pager::serve ──> woken      lost: Observer::lost
//!     ▲                  │        └─ not yet: again after the next read
//!     │                  └──> events: Observer::event, then the swapper forgets what was discarded
//!     └── asleep, unless a fault is still to be served
//! ```
//!
//! Faults that cannot be served yet belong to all handlers. A mapping does not change between the reading of one event and
//! the sending of the next, and in a flood of events that moment is short: the handler that has just read one serves them
//! all, before it passes the event on.
//!
//! By default there is one handler for each vCPU, on that vCPU's processor: waking a thread that sleeps on another processor
//! takes longer than the rest of a fault. The kernel cannot be told which handler to wake. So up to four handlers with a
//! processor each are all woken for every fault, and do not preempt other threads (`SCHED_BATCH`): on the processor of the
//! vCPU that sleeps over its fault, the handler runs at once; beside a busy vCPU it is ready when that vCPU faults. Each
//! reads one message at a time, so a second fault goes to an idle handler.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use guest_mem::remedy::{self, Asked};
use guest_mem::waits::{END, Overdue, Thread};
use guest_mem::{HvaRange, PAGE_SIZE};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};
use uffd::{DecodeError, Event, EventBuffer, PageFault, ReadError, Stop, Waiter, Woken};

use crate::pager::{Lost, Pager, Served};
use crate::reading::Turn;
use crate::state::BLOCK_PAGES;
use crate::store::BufferError;
use crate::swapper::Swapper;
use crate::sys;

/// Messages that a handler reads at once if there is no other: more than there are vCPUs to fault in most guests.
const BATCH: usize = 64;

/// The most handlers that are all woken for each fault. With more, the wake-ups cost more than waking one on another
/// processor.
const ALL_WOKEN: usize = 4;

/// Receives the faults and events of a handler. Each handler has its own.
pub trait Observer: Send {
    /// A fault was served.
    fn fault(&mut self, fault: &PageFault, served: Served);
    /// The mapping was changed, not by the swapper. The kernel sends a removal before the pages are dropped, and drops them
    /// as soon as it is read.
    fn event(&mut self, event: &Event);
    /// A page cannot be given back. Threads that wait for it still wait.
    fn lost(&mut self, lost: Lost);
}

/// Handlers could not be started, or one has failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum HandlerError {
    #[error("no descriptor for a handler to wait by{}", remedy::after(Asked::Descriptor, *.0))]
    Wait(#[source] Errno),
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error("no thread for a handler{}", remedy::after_io(Asked::Thread, .0))]
    Thread(#[source] std::io::Error),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It was told to stop, and does not. The swapper and its memory stay.
    #[error(transparent)]
    Overdue(#[from] Overdue),
}

/// The counters of a handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandlerReport {
    /// Faults served.
    pub faults: u64,
    /// Pages that came back from the store.
    pub returned: u64,
    /// Blocks of 2 MiB among them that came back as one huge page.
    pub huge: u64,
    /// Pages of zeros for a first touch.
    pub zeroed: u64,
    /// Pages that stayed because they were written to on their way out.
    pub kept: u64,
    /// Wake-ups.
    pub wakes: u64,
}

impl std::ops::AddAssign for HandlerReport {
    fn add_assign(&mut self, other: Self) {
        // Taken apart by name, so that a field added to the struct and forgotten here does not compile.
        let Self { faults, returned, huge, zeroed, kept, wakes } = other;
        self.faults += faults;
        self.returned += returned;
        self.huge += huge;
        self.zeroed += zeroed;
        self.kept += kept;
        self.wakes += wakes;
    }
}

/// Running handlers. Dropped, they stop; faults that come then wait until the swapper is gone.
#[derive(Debug)]
pub struct Handlers {
    stop: Arc<Stop>,
    threads: Vec<Thread<Result<HandlerReport, HandlerError>>>,
}

impl Handlers {
    /// Starts a handler for each of `observers`, on the processor beside it if there is one.
    ///
    /// # Errors
    /// [`HandlerError`]: none runs then.
    pub fn start<H: Observer + 'static>(
        swapper: &Arc<Swapper>,
        observers: Vec<(H, Option<usize>)>,
    ) -> Result<Self, HandlerError> {
        let stop = Arc::new(Stop::new().map_err(HandlerError::Wait)?);
        let mut handlers = Self { stop, threads: Vec::new() };
        let count = observers.len();
        for (index, (observer, processor)) in observers.into_iter().enumerate() {
            let (swapper, stop) = (swapper.clone(), handlers.stop.clone());
            let thread = Thread::start(format!("uffd{index}"), move || {
                let has_processor = processor.is_some_and(stay_on);
                let all_woken = has_processor && (2..=ALL_WOKEN).contains(&count);
                if all_woken {
                    // Best effort: without it a handler may preempt a vCPU.
                    let _ = sys::yield_to_others();
                }
                let new = if all_woken { Waiter::always_woken } else { Waiter::new };
                let waiter = new(&swapper.userfault, &stop).map_err(HandlerError::Wait)?;
                let batch = if count == 1 { BATCH } else { 1 };
                Handler::new(&swapper, observer, batch)?.run(&waiter)
            });
            handlers.threads.push(thread.map_err(HandlerError::Thread)?);
        }
        Ok(handlers)
    }

    /// Stops them all, and returns the counters of each.
    pub fn stop(self) -> Result<Vec<HandlerReport>, HandlerError> {
        self.stop_within(END)
    }

    /// [`Handlers::stop`] with a deadline of the caller's for all of them.
    pub fn stop_within(mut self, patience: Duration) -> Result<Vec<HandlerReport>, HandlerError> {
        // It cannot fail on an eventfd of our own.
        let _ = self.stop.raise();
        self.threads.iter_mut().for_each(Thread::told);
        let ends: Vec<_> = self.threads.drain(..).map(|thread| thread.end(patience)).collect();
        let report = |end: Result<std::thread::Result<_>, _>| match end? {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        ends.into_iter().map(report).collect()
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        let _ = self.stop.raise();
        Thread::end_all_or_tell(std::mem::take(&mut self.threads));
    }
}

/// Keeps the calling thread on a processor. Returns `false` if the thread may not run there: then it runs anywhere.
fn stay_on(processor: usize) -> bool {
    let mut set = CpuSet::new();
    if processor >= CpuSet::MAX_CPU {
        return false;
    }
    set.set(processor);
    sched_setaffinity(None, &set).is_ok()
}

/// The data of a handler's thread.
struct Handler<'s, H> {
    swapper: &'s Swapper,
    pager: Pager<'s>,
    observer: H,
    buffer: EventBuffer,
    /// Faults that were read and not served yet.
    faults: VecDeque<PageFault>,
    /// Events that the observer was not told yet.
    untold: Vec<Event>,
    report: HandlerReport,
}

impl<'s, H: Observer> Handler<'s, H> {
    fn new(swapper: &'s Swapper, observer: H, batch: usize) -> Result<Self, HandlerError> {
        let (pager, report) = (Pager::new(swapper)?, HandlerReport::default());
        let buffer = EventBuffer::new(batch);
        Ok(Self { swapper, pager, observer, buffer, faults: VecDeque::new(), untold: Vec::new(), report })
    }

    fn run(mut self, waiter: &Waiter) -> Result<HandlerReport, HandlerError> {
        loop {
            if self.swapper.waiting.is_empty() {
                if waiter.wait().map_err(HandlerError::Wait)? == Woken::Stop {
                    return Ok(self.report);
                }
                self.report.wakes += 1;
            } else {
                std::thread::yield_now();
            }
            let in_need = !self.swapper.waiting.is_empty();
            self.read(if in_need { Turn::ComesAgain } else { Turn::Waits })?;
            if in_need {
                self.serve_all();
                self.tell();
            } else {
                self.tell();
                self.serve_all();
            }
        }
    }

    /// Reads all messages. Discarded pages are forgotten at once.
    fn read(&mut self, turn: Turn) -> Result<(), HandlerError> {
        let swapper = self.swapper;
        let Ok(_at_work) = swapper.reading.begin(turn) else { return Ok(()) };
        swapper.userfault.read_events(&mut self.buffer)?;
        while let Some(event) = self.buffer.pop() {
            let event = event?;
            match event {
                Event::Fault(fault) => {
                    self.faults.push_back(fault);
                    continue;
                }
                Event::Remove(range) => {
                    for foreign in swapper.own_drops.foreign(range) {
                        swapper.removed(foreign);
                        self.untold.push(Event::Remove(foreign));
                    }
                    continue;
                }
                Event::Unmap(range) => swapper.forget_unless_away(range),
                Event::Remap { from, to } => swapper.moved(from, to),
            }
            self.untold.push(event);
        }
        Ok(())
    }

    /// Serves the faults that were read, and those that wait, whichever handler has read them.
    fn serve_all(&mut self) {
        self.swapper.waiting.take(&mut self.faults);
        for _ in 0..self.faults.len() {
            let Some(&fault) = self.faults.front() else { return };
            self.serve(fault);
            // Not before it is served: see `drop`.
            self.faults.pop_front();
        }
    }

    fn tell(&mut self) {
        for event in self.untold.drain(..) {
            self.observer.event(&event);
        }
    }

    fn serve(&mut self, fault: PageFault) {
        let report = &mut self.report;
        let served = match self.pager.serve(&fault) {
            Ok(served) => served,
            Err(lost) => return self.observer.lost(lost),
        };
        match served {
            Served::NotYet => return self.swapper.waiting.push(fault),
            Served::Returned(pages) => report.returned += u64::from(pages),
            Served::Huge => {
                report.returned += BLOCK_PAGES as u64;
                report.huge += 1;
            }
            Served::Zeroed(pages) => report.zeroed += u64::from(pages),
            Served::Kept => report.kept += 1,
            Served::Present => {}
        }
        report.faults += 1;
        self.observer.fault(&fault, served);
    }
}

impl<H> Drop for Handler<'_, H> {
    /// A handler that fails, or whose observer panics, has read faults that no other handler can read. Their threads are
    /// woken, fault again, and another handler reads the fault.
    fn drop(&mut self) {
        self.swapper.waiting.take(&mut self.faults);
        for page in self.faults.drain(..).filter_map(|fault| HvaRange::with_len(fault.page(), PAGE_SIZE)) {
            // It fails for a page that is no longer registered, for which no thread waits.
            let _ = self.swapper.userfault.wake(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up_field_by_field() {
        let of = |[faults, returned, huge, zeroed, kept, wakes]: [u64; 6]| HandlerReport {
            faults,
            returned,
            huge,
            zeroed,
            kept,
            wakes,
        };
        let mut sum = of([10, 20, 30, 40, 50, 60]);
        sum += of([1, 2, 3, 4, 5, 6]);
        assert_eq!(sum, of([11, 22, 33, 44, 55, 66]));
    }

    #[test]
    fn a_thread_stays_on_a_processor_that_there_is() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let last = (0..CpuSet::MAX_CPU).rev().find(|&one| allowed.is_set(one)).unwrap();
            assert!(stay_on(last));
            let now = rustix::thread::sched_getaffinity(None).unwrap();
            assert_eq!((now.count(), now.is_set(last)), (1, true));
            assert!(!stay_on(CpuSet::MAX_CPU), "more than the kernel knows of");
            assert!(!stay_on(CpuSet::MAX_CPU - 1), "none that this host has");
            assert_eq!(rustix::thread::sched_getaffinity(None).unwrap(), now);
        })
        .join()
        .unwrap();
    }
}
