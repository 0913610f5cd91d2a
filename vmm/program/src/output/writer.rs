//! The thread that writes, so that no other thread waits for a reader.
//!
//! ```text
//!   any thread: say ──> Queue ──> the writer: poll both streams ── writable ──> write, at most 4 KiB
//!                 └── wakes it       └── an error: the stream is closed; that of standard output is kept for the end
//!   the end: finish waits until the queue is empty, or a stop was asked for and the readers do not read
//! ```
//!
//! The first text starts it. If the thread cannot be started, the text waits until the end, and `finish` writes it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::queue::{Keep, Queue, Stream};
use super::status::{Status, TICK};
use crate::stop_signals::with_stop_signals_blocked;

/// The limit on a write: a writable pipe takes this much without blocking.
const WRITE: usize = 4096;
/// The stack of the writer thread.
const STACK: usize = 64 << 10;
/// After a stop: the limit on the wait for a reader that does not read.
const IDLE: Duration = Duration::from_secs(1);
/// After a stop: the limit on the wait for a reader that reads.
const SLOW: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct State {
    queue: Queue,
    /// The status line, if standard error is a terminal.
    status: Option<Status>,
    /// Whether there is a writer thread.
    has_writer: bool,
    /// The streams that the writer polls, while it does.
    polled: Option<[bool; 2]>,
    /// The number of writes.
    writes: u64,
    /// Whether a stop was asked for.
    hurry: bool,
    /// The error by which standard output was closed, unless its reader had closed it.
    failure: Option<Errno>,
}

impl State {
    fn erase_status(&mut self) {
        if let Some(erase) = self.status.as_mut().and_then(Status::erase) {
            self.queue.push(Stream::Err, erase.as_bytes(), Keep::Always);
        }
    }

    /// Draws the status line if no text waits; returns when to draw it again.
    fn draw_status(&mut self, width: impl FnOnce() -> usize) -> Option<Duration> {
        let status = self.status.as_mut()?;
        if self.queue.wanted() == [false; 2]
            && let Some(line) = status.draw(Instant::now(), width())
        {
            self.queue.push(Stream::Err, line.as_bytes(), Keep::WithRoom);
        }
        Some(TICK)
    }
}

/// Two streams, their queue, and the writer thread.
#[derive(Debug)]
pub struct Writer {
    streams: [BorrowedFd<'static>; 2],
    state: Mutex<State>,
    /// Signalled after each write, and when a stop is asked for.
    changed: Condvar,
    wake: OnceLock<OwnedFd>,
}

impl Writer {
    /// A writer without a thread, which the first text starts.
    pub const fn new(streams: [BorrowedFd<'static>; 2]) -> Self {
        let state = State {
            queue: Queue::new(),
            status: None,
            has_writer: false,
            polled: None,
            writes: 0,
            hurry: false,
            failure: None,
        };
        Self { streams, state: Mutex::new(state), changed: Condvar::new(), wake: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues bytes. Does not block.
    pub fn say(&'static self, stream: Stream, bytes: &[u8], keep: Keep) {
        let mut state = self.lock();
        state.erase_status();
        state.queue.push(stream, bytes, keep);
        state.has_writer = state.has_writer || self.start();
        if state.polled.is_some_and(|polled| !polled[stream as usize]) {
            state.polled = None;
            drop(state);
            self.wake();
        }
    }

    /// Sets or removes the status line.
    pub fn status(&'static self, status: Option<Status>) {
        let mut state = self.lock();
        if state.status.is_none() && status.is_none() {
            return;
        }
        state.erase_status();
        state.status = status;
        state.has_writer = state.has_writer || self.start();
        state.polled = None;
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            // Fails only if the counter is full, and then it is readable.
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(wake, &1u64.to_ne_bytes()));
        }
    }

    /// Starts the thread; returns whether it runs.
    fn start(&'static self) -> bool {
        if self.wake.get().is_none() {
            let Ok(event) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) else { return false };
            let _ = self.wake.set(event);
        }
        let thread = std::thread::Builder::new().name("output".to_owned()).stack_size(STACK);
        // A stop signal to a thread without the mask would end the process.
        with_stop_signals_blocked(|| thread.spawn(|| self.run()).is_ok())
    }

    fn run(&self) {
        loop {
            let (wanted, timeout) = {
                let mut state = self.lock();
                let timeout = state.draw_status(|| self.width());
                let wanted = state.queue.wanted();
                state.polled = Some(wanted);
                (wanted, timeout)
            };
            let writable = self.wait(wanted, timeout);
            self.lock().polled = None;
            self.write_first(writable);
        }
    }

    /// Waits until a stream is writable, more text is queued, or the time is over; returns the writable streams.
    fn wait(&self, wanted: [bool; 2], timeout: Option<Duration>) -> [bool; 2] {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let wake = self.wake.get().map(|wake| PollFd::new(wake, PollFlags::IN));
        // A stream without text is not polled: a closed reader would make it ready all the time.
        let streams = [0, 1].map(|index| {
            wanted[index].then(|| PollFd::from_borrowed_fd(self.streams[index], PollFlags::OUT))
        });
        let [out, err] = streams;
        let mut fds: Vec<PollFd<'_>> = [out, err, wake].into_iter().flatten().collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return [false; 2],
            // Polling failed: the write blocks or fails.
            Err(_) => return wanted,
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let writable = wanted.map(|wanted| wanted && ready.next() == Some(true));
        if ready.next() == Some(true)
            && let Some(wake) = self.wake.get()
        {
            let _ = rustix::io::read(wake, &mut [0u8; 8]);
        }
        writable
    }

    /// The width of the terminal.
    fn width(&self) -> usize {
        rustix::termios::tcgetwinsize(self.streams[Stream::Err as usize])
            .map_or(80, |size| size.ws_col.into())
    }

    /// Writes the oldest bytes of a writable stream.
    fn write_first(&self, writable: [bool; 2]) {
        let mut bytes = [0; WRITE];
        let (stream, length) = match self.lock().queue.first(writable) {
            Some((stream, first)) => {
                let length = first.len().min(WRITE);
                bytes[..length].copy_from_slice(&first[..length]);
                (stream, length)
            }
            None => return,
        };
        let written = rustix::io::write(self.streams[stream as usize], &bytes[..length]);
        let mut state = self.lock();
        match written {
            Ok(count) => {
                state.queue.written(stream, count);
                state.writes += 1;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => {
                state.queue.close(stream);
                if stream == Stream::Out && errno != Errno::PIPE {
                    state.failure = Some(errno);
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// A stop was asked for: limits the wait of `finish`.
    pub fn hurry(&self) {
        self.lock().hurry = true;
        self.changed.notify_all();
    }

    /// Waits until all text is written, for at most `limit`, and after a stop for at most [`IDLE`] or [`SLOW`]. Returns the error of
    /// standard output, unless its reader has closed it.
    pub fn finish(&self, limit: Option<Duration>) -> Option<Errno> {
        let mut state = self.lock();
        state.erase_status();
        state.status = None;
        let begun = Instant::now();
        let (mut told, mut last, mut writes) = (None, begun, state.writes);
        while state.queue.wanted() != [false; 2] {
            let now = Instant::now();
            if limit.is_some_and(|limit| now >= begun + limit) {
                break;
            }
            if state.writes > writes {
                (last, writes) = (now, state.writes);
            }
            if state.hurry {
                // The time before the stop does not count.
                let told = *told.get_or_insert(now);
                if now >= last.max(told) + IDLE || now >= told + SLOW {
                    break;
                }
            }
            let pause = limit.map_or(IDLE, |limit| limit.min(IDLE));
            state = match state.has_writer {
                true => self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0,
                false => self.write_here(state),
            };
        }
        state.failure
    }

    /// Writes in this thread, without a writer thread.
    fn write_here<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let wanted = state.queue.wanted();
        drop(state);
        let writable = self.wait(wanted, Some(IDLE));
        self.write_first(writable);
        self.lock()
    }
}

#[cfg(test)]
mod tests;
