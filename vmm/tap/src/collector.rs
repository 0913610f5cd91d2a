//! The thread that reads a source: it sleeps until a buffer is half full, and empties the buffers then.
//!
//! ```text
//!   kernel ── rings ──┐ readable at the watermark          the user of the tap
//!                     ▼                                       │ take: empties the rings once more, and
//!             reader thread ── one lock ── kept events ───────┘ returns all events so far, in order of time
//!                              select by address, note the thread, count KVM's events
//! ```
//!
//! In the steady state an event is neither allocated nor formatted: it is copied from its ring into a buffer of fixed size.
//! Events that do not fit into this buffer are counted as lost, as those that did not fit into their ring.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_mem::HvaRange;
use guest_mem::remedy::{self, Asked};
use guest_mem::waits::Thread;
use notifier_bridge::monotonic_ns;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use strum::EnumCount;

use super::filter::merged;
use super::ring::Damaged;
use super::source::{Record, Source};
use super::tasks::{Task, Tasks};
use super::tracepoints::{Event, KvmEvent, Layout, What};

/// The collector cannot start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum CollectError {
    #[error(
        "the kernel's account cannot have {bytes} bytes of memory{}",
        remedy::after(Asked::AddressSpace, Errno::NOMEM)
    )]
    Memory { bytes: usize },
    #[error("the thread that reads the kernel's account cannot be started{}", remedy::after_io(Asked::Thread, .0))]
    Start(#[source] std::io::Error),
}

/// Counts of a collector since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Records read from the source.
    pub records: u64,
    /// Records that could not be decoded.
    pub undecoded: u64,
    /// Ranges outside the watched ones that the kernel's filter let through.
    pub elsewhere: u64,
    /// Records that did not fit into a ring or into the buffer.
    pub lost: u64,
    /// Events of KVM, of all VMs of the host.
    pub kvm: KvmCounts,
}

/// Counts of KVM's events, in the order of [`KvmEvent`].
pub type KvmCounts = [u64; KvmEvent::COUNT];

/// A source and its reader.
pub struct Collector {
    state: Arc<Mutex<State>>,
    stop: OwnedFd,
    reader: Option<Thread<()>>,
}

struct State {
    source: Box<dyn Source>,
    layout: Layout,
    watched: Vec<HvaRange>,
    /// Its capacity never grows.
    kept: Vec<Event>,
    seen: Seen,
    /// Events that did not fit into `kept`.
    unkept: u64,
    tasks: Tasks,
    by_thread: CountsByThread,
    failed: Option<Damaged>,
}

/// KVM's events by thread: the tracepoints do not tell the VM.
#[derive(Default)]
struct CountsByThread {
    /// In order of thread ID.
    threads: Vec<(u32, KvmCounts)>,
    /// The place of the last event's thread: a thread mostly has several events in a row.
    last: usize,
}

impl CountsByThread {
    /// The limit on threads. Events of further threads are in [`Seen::kvm`] only.
    const MOST: usize = 4096;

    #[inline]
    fn count(&mut self, tid: u32, event: KvmEvent) {
        if self.threads.get(self.last).is_none_or(|(last, _)| *last != tid) && !self.find(tid) {
            return;
        }
        self.threads[self.last].1[event as usize] += 1;
    }

    #[cold]
    fn find(&mut self, tid: u32) -> bool {
        match self.threads.binary_search_by_key(&tid, |(thread, _)| *thread) {
            Ok(at) => self.last = at,
            Err(_) if self.threads.len() == Self::MOST => return false,
            Err(at) => {
                self.threads.insert(at, (tid, KvmCounts::default()));
                self.last = at;
            }
        }
        true
    }

    fn of(&self, is_wanted: impl Fn(u32) -> bool) -> KvmCounts {
        let mut sum = KvmCounts::default();
        for (_, counts) in self.threads.iter().filter(|(tid, _)| is_wanted(*tid)) {
            sum.iter_mut().zip(counts).for_each(|(sum, one)| *sum += one);
        }
        sum
    }
}

impl Collector {
    /// Begins to read `source`, whose records `layout` decodes. Ranges that do not meet `watched` are skipped; up to
    /// `capacity` events wait to be taken.
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
        // The run goes on without the kernel's account if there is no memory for it.
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
            by_thread: CountsByThread::default(),
            failed: None,
        };
        let state = Arc::new(Mutex::new(state));
        let read = state.clone();
        let reader = Thread::start("tap", move || read_until_stopped(&read, wakes, &stopped));
        Ok(Self { state, stop, reader: Some(reader.map_err(CollectError::Start)?) })
    }

    /// Appends all events so far to `events`, in order of time. Those of this thread's own actions are complete.
    ///
    /// # Errors
    /// The source is damaged: an unknown number of events is missing.
    pub fn take(&self, events: &mut Vec<Event>) -> Result<Seen, Damaged> {
        let mut state = lock(&self.state);
        let now = monotonic_ns();
        state.drain();
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        state.kept.sort_by_key(|event| event.time_ns);
        // Buffers are read one after the other: of events after `now`, earlier ones may still be in a buffer read before.
        let until = state.kept.partition_point(|event| event.time_ns <= now);
        events.extend(state.kept.drain(..until));
        state.seen.lost = state.unkept + state.source.lost();
        Ok(state.seen)
    }

    /// Watches other addresses from now on, and drops the events so far; returns the losses until now.
    ///
    /// The kernel's filter does not change: it must have been opened wide enough.
    pub fn watch(&self, watched: &[HvaRange]) -> u64 {
        let mut state = lock(&self.state);
        state.drain();
        state.kept.clear();
        state.watched = merged(watched);
        state.unkept + state.source.lost()
    }

    /// The threads of the events so far.
    pub fn tasks(&self) -> Vec<Task> {
        lock(&self.state).tasks.known().to_vec()
    }

    /// Counts of the recorded events of KVM, of the threads of one process.
    pub fn kvm_events_of(&self, pid: u32) -> Vec<(KvmEvent, u64)> {
        let state = lock(&self.state);
        let known = state.tasks.known();
        let is_its = |tid: u32| {
            known.binary_search_by_key(&tid, |task| task.tid).is_ok_and(|at| known[at].pid == Some(pid))
        };
        let counts = state.by_thread.of(is_its);
        state.layout.kvm_events().map(|event| (event, counts[event as usize])).collect()
    }

    /// Tracepoints that the kernel lacks, as `group:name`.
    pub fn missing(&self) -> Vec<String> {
        lock(&self.state).layout.missing().to_vec()
    }
}

impl State {
    fn drain(&mut self) {
        let Self { source, layout, watched, kept, seen, unkept, tasks, by_thread, failed } = self;
        let capacity = kept.capacity();
        let drained = source.drain(&mut |record| {
            seen.records += 1;
            let event = match record {
                Record::Sample(sample) => layout.decode(&sample),
                Record::Event(event) => Some(event),
                // It is missing in the account.
                Record::Malformed => {
                    *unkept += 1;
                    None
                }
            };
            let Some(event) = event else {
                seen.undecoded += 1;
                return;
            };
            match event.what {
                What::Kvm(kvm) => {
                    seen.kvm[kvm as usize] += 1;
                    tasks.note(event.pid, event.tid);
                    by_thread.count(event.tid, kvm);
                    return;
                }
                What::Range(range) if !meets(watched, range) => {
                    seen.elsewhere += 1;
                    return;
                }
                _ => {}
            }
            tasks.note(event.pid, event.tid);
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

/// Whether `range` meets one of `watched`, which are in order and do not meet each other.
#[inline]
fn meets(watched: &[HvaRange], range: HvaRange) -> bool {
    let first = watched.partition_point(|one| one.end() <= range.start());
    watched.get(first).is_some_and(|one| one.overlaps(range))
}

fn read_until_stopped(state: &Mutex<State>, mut wakes: Vec<OwnedFd>, stop: &OwnedFd) {
    loop {
        let mut polled: Vec<PollFd<'_>> = vec![PollFd::new(stop, PollFlags::IN)];
        polled.extend(wakes.iter().map(|wake| PollFd::new(wake, PollFlags::IN)));
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
        // The descriptor of a CPU that was taken offline stays readable: it is polled no more.
        let over: Vec<bool> = polled[1..].iter().map(|fd| fd.revents().intersects(OVER)).collect();
        let mut over = over.into_iter();
        wakes.retain(|_| !over.next().unwrap_or(false));
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
