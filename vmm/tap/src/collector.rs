//! Collecting what a source records: a thread that sleeps until half a buffer is full, and empties it then.
//!
//! ```text
//!   kernel ── rings ──┐ readable at the watermark          whoever wants to know
//!                     ▼                                       │ take: empties the rings once more, and
//!             reader thread ── one lock ── kept events ───────┘ gets everything until now, in order of time
//!                              select by address, note the thread, count the deeds
//! ```
//!
//! In the steady state nothing is allocated and nothing formatted for an event: it is copied from its ring into a buffer
//! of fixed size. What finds that buffer full is counted as lost, like what found its ring full.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mem::HvaRange;
use guest_mem::remedy::{self, Asked};
use guest_mem::waits::Thread;
use notifier_bridge::monotonic_ns;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;

use super::filter::merged;
use super::source::{Heard, Source, SourceError};
use super::tasks::{Task, Tasks};
use super::tracepoints::{Deed, Event, Layout, What};

/// Why nothing can be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// No memory for the events that wait to be taken.
    #[error(
        "the kernel's account cannot have {bytes} bytes of memory{}",
        remedy::after(Asked::AddressSpace, Errno::NOMEM)
    )]
    Memory {
        /// How much it was to be.
        bytes: usize,
    },
    /// No descriptor or thread for the reader.
    #[error("the thread that reads the kernel's account cannot be started{}", remedy::after_io(Asked::Thread, .0))]
    Start(#[source] std::io::Error),
}

/// What a collector has seen, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Records taken from the source.
    pub records: u64,
    /// Those that were not listened to, or made no sense.
    pub foreign: u64,
    /// Ranges elsewhere, which the kernel's filter let through.
    pub elsewhere: u64,
    /// Records lost: no room in a ring, or in the buffer.
    pub lost: u64,
    /// KVM's deeds on this host, whatever VM they were for, in the order of [`Deed::ALL`].
    pub deeds: Deeds,
}

/// How often KVM did what, in the order of [`Deed::ALL`].
pub type Deeds = [u64; Deed::ALL.len()];

/// A source being read.
pub struct Collector {
    state: Arc<Mutex<State>>,
    stop: OwnedFd,
    reader: Option<Thread<()>>,
}

struct State {
    source: Box<dyn Source>,
    layout: Layout,
    watched: Vec<HvaRange>,
    /// Never grows beyond its capacity.
    kept: Vec<Event>,
    seen: Seen,
    /// Lost here, as against in the source.
    unkept: u64,
    tasks: Tasks,
    deeds: DeedsByThread,
    failed: Option<SourceError>,
}

/// KVM's deeds by the thread in whose context they were done: a tracepoint does not say for which VM.
#[derive(Default)]
struct DeedsByThread {
    /// In order of number.
    threads: Vec<(u32, Deeds)>,
    /// Where the last one was found: a thread mostly does several in a row.
    last: usize,
}

impl DeedsByThread {
    /// Threads that are told apart. Those of more are in [`Seen::deeds`] only.
    const MOST: usize = 4096;

    #[inline]
    fn count(&mut self, tid: u32, deed: Deed) {
        if self.threads.get(self.last).is_none_or(|(last, _)| *last != tid) && !self.find(tid) {
            return;
        }
        self.threads[self.last].1[deed as usize] += 1;
    }

    #[cold]
    fn find(&mut self, tid: u32) -> bool {
        match self.threads.binary_search_by_key(&tid, |(thread, _)| *thread) {
            Ok(at) => self.last = at,
            Err(_) if self.threads.len() == Self::MOST => return false,
            Err(at) => {
                self.threads.insert(at, (tid, Deeds::default()));
                self.last = at;
            }
        }
        true
    }

    fn of(&self, is_wanted: impl Fn(u32) -> bool) -> Deeds {
        let mut sum = Deeds::default();
        for (_, deeds) in self.threads.iter().filter(|(tid, _)| is_wanted(*tid)) {
            sum.iter_mut().zip(deeds).for_each(|(sum, one)| *sum += one);
        }
        sum
    }
}

impl Collector {
    /// Begins to read `source`, whose records `layout` decodes. Ranges that do not meet `watched` are passed over;
    /// up to `capacity` events wait to be taken.
    ///
    /// # Errors
    /// [`CollectError`].
    pub fn start(
        source: Box<dyn Source>,
        layout: Layout,
        watched: &[HvaRange],
        capacity: usize,
    ) -> Result<Self, CollectError> {
        let start = |errno: Errno| CollectError::Start(errno.into());
        let wakes = source.wakes().into_iter().map(|fd| fd.try_clone_to_owned());
        let wakes: Vec<OwnedFd> = wakes.collect::<Result<_, _>>().map_err(CollectError::Start)?;
        let stop =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(start)?;
        let stopped = stop.try_clone().map_err(CollectError::Start)?;
        let mut kept = Vec::new();
        // It is an account beside the run's own: without room for it the run goes on.
        let room = kept.try_reserve_exact(capacity);
        room.map_err(|_| CollectError::Memory { bytes: capacity.saturating_mul(size_of::<Event>()) })?;
        let state = State {
            source,
            layout,
            watched: merged(watched),
            kept,
            seen: Seen::default(),
            unkept: 0,
            tasks: Tasks::default(),
            deeds: DeedsByThread::default(),
            failed: None,
        };
        let state = Arc::new(Mutex::new(state));
        let read = state.clone();
        let reader = Thread::start("tap", move || read_until_stopped(&read, &wakes, &stopped));
        Ok(Self { state, stop, reader: Some(reader.map_err(CollectError::Start)?) })
    }

    /// Takes everything recorded until now, in order of time, and adds it to `events`. What this thread did before, on
    /// whatever CPU, is among it.
    ///
    /// # Errors
    /// The source failed, now or earlier: events are missing, it is not known how many.
    pub fn take(&self, events: &mut Vec<Event>) -> Result<Seen, SourceError> {
        let mut state = lock(&self.state);
        let now = monotonic_ns();
        state.drain();
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        state.kept.sort_by_key(|event| event.time_ns);
        // Buffers are emptied one after the other. What is younger than that may lack what went before it elsewhere.
        let until = state.kept.partition_point(|event| event.time_ns <= now);
        events.extend(state.kept.drain(..until));
        state.seen.lost = state.unkept + state.source.lost();
        Ok(state.seen)
    }

    /// Watches other addresses from now on. What was recorded until now is given up. How much was lost by then.
    ///
    /// The kernel's own filter stays as it was opened: it must be wide enough for both.
    pub fn watch(&self, watched: &[HvaRange]) -> u64 {
        let mut state = lock(&self.state);
        state.drain();
        state.kept.clear();
        state.watched = merged(watched);
        state.unkept + state.source.lost()
    }

    /// The threads heard of so far.
    pub fn tasks(&self) -> Vec<Task> {
        lock(&self.state).tasks.known().to_vec()
    }

    /// KVM's deeds by the threads of one process, of those that are listened to.
    pub fn deeds_of(&self, pid: u32) -> Vec<(Deed, u64)> {
        let state = lock(&self.state);
        let known = state.tasks.known();
        let is_its = |tid: u32| {
            known.binary_search_by_key(&tid, |task| task.tid).is_ok_and(|at| known[at].pid == Some(pid))
        };
        let done = state.deeds.of(is_its);
        state.layout.deeds().map(|deed| (deed, done[deed as usize])).collect()
    }

    /// Tracepoints that the kernel lacks, as `group:name`.
    pub fn missing(&self) -> Vec<String> {
        lock(&self.state).layout.missing().to_vec()
    }
}

impl State {
    fn drain(&mut self) {
        let Self { source, layout, watched, kept, seen, unkept, tasks, deeds, failed } = self;
        let capacity = kept.capacity();
        let drained = source.drain(&mut |heard| {
            seen.records += 1;
            let event = match heard {
                Heard::Sample(sample) => layout.decode(&sample),
                Heard::Event(event) => Some(event),
                // It was one that is listened to.
                Heard::Nonsense => {
                    *unkept += 1;
                    None
                }
            };
            let Some(event) = event else {
                seen.foreign += 1;
                return;
            };
            match event.what {
                What::Did(deed) => {
                    seen.deeds[deed as usize] += 1;
                    tasks.heard(event.pid, event.tid);
                    deeds.count(event.tid, deed);
                    return;
                }
                What::Range(range) if !meets(watched, range) => {
                    seen.elsewhere += 1;
                    return;
                }
                _ => {}
            }
            tasks.heard(event.pid, event.tid);
            if kept.len() < capacity {
                kept.push(event);
            } else {
                *unkept += 1;
            }
        });
        if let Err(error) = drained {
            *failed = Some(error);
        }
        tasks.look_up();
    }
}

/// Whether `range` meets one of `watched`, which are in order and apart.
#[inline]
fn meets(watched: &[HvaRange], range: HvaRange) -> bool {
    let first = watched.partition_point(|one| one.end() <= range.start());
    watched.get(first).is_some_and(|one| one.overlaps(range))
}

fn read_until_stopped(state: &Mutex<State>, wakes: &[OwnedFd], stop: &OwnedFd) {
    let mut dead = vec![false; wakes.len()];
    loop {
        let live = wakes.iter().zip(&dead).filter(|(_, dead)| !**dead).map(|(wake, _)| wake.as_fd());
        let mut polled: Vec<PollFd<'_>> = vec![PollFd::new(stop, PollFlags::IN)];
        polled.extend(live.map(|wake| PollFd::from_borrowed_fd(wake, PollFlags::IN)));
        match rustix::event::poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        if !polled[0].revents().is_empty() {
            return;
        }
        let mut state = lock(state);
        state.drain();
        if state.failed.is_some() {
            return;
        }
        drop(state);
        // A CPU that was taken offline hangs up, and would wake us for ever.
        let over: Vec<bool> = polled[1..].iter().map(|fd| fd.revents().intersects(OVER)).collect();
        let mut over = over.into_iter();
        dead.iter_mut().filter(|dead| !**dead).for_each(|dead| *dead = over.next().unwrap_or(false));
    }
}

const OVER: PollFlags = PollFlags::HUP.union(PollFlags::ERR).union(PollFlags::NVAL);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.stop, &1u64.to_ne_bytes()));
        if let Some(reader) = self.reader.take() {
            reader.end_or_tell();
        }
    }
}

#[cfg(test)]
mod tests;
