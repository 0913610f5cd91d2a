//! The thread that writes, so that nobody else waits for a reader.
//!
//! ```text
//!   any thread: say ──> Queue ──> the writer: poll both streams ── writable ──> write, at most 4 KiB
//!                 └── wakes it       └── an error: the stream is closed; standard output's is kept for the end
//!   the end: finish waits until nothing waits any more, or a stop was asked for and the readers do not read
//! ```
//!
//! It is started by the first text. Where it cannot be, the text waits until the end, and `finish` writes it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::queue::{Keep, Queue, Stream};
use super::status::{Status, TICK};
use crate::stop_signals::with_stop_signals_blocked;

/// One write is at most this long: a pipe that can be written to takes so much without blocking.
const WRITE: usize = 4096;
/// The writer calls the kernel, and nothing deep.
const STACK: usize = 64 << 10;
/// How long a program that was told to stop waits for a reader that does not read.
const IDLE: Duration = Duration::from_secs(1);
/// How long it waits for one that reads.
const SLOW: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct State {
    queue: Queue,
    /// What stands at the bottom of the terminal that standard error is.
    status: Option<Status>,
    /// There is a writer thread.
    has_writer: bool,
    /// What the writer waits for, while it does.
    polled: Option<[bool; 2]>,
    /// Grows with each write.
    writes: u64,
    /// A stop was asked for.
    hurry: bool,
    /// Why standard output was closed, if not because its reader had gone.
    failure: Option<Errno>,
}

impl State {
    fn erase_status(&mut self) {
        if let Some(erase) = self.status.as_mut().and_then(Status::erase) {
            self.queue.push(Stream::Err, erase.as_bytes(), Keep::Always);
        }
    }

    /// Draws the status where nothing waits. Returns when to look again.
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

/// Two descriptors, what waits for them, and who writes it.
#[derive(Debug)]
pub struct Writer {
    streams: [BorrowedFd<'static>; 2],
    state: Mutex<State>,
    /// Something was written, or need not be waited for.
    changed: Condvar,
    wake: OnceLock<OwnedFd>,
}

impl Writer {
    /// Nothing is written, and no thread started, before there is something to say.
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

    /// Has bytes written. Waits for no reader.
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

    /// Sets the line at the bottom of the terminal that standard error is, or takes it away.
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
            // Fails only when the counter is full, and then it is readable already.
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(wake, &1u64.to_ne_bytes()));
        }
    }

    /// Whether there is a thread now.
    fn start(&'static self) -> bool {
        if self.wake.get().is_none() {
            let Ok(event) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) else { return false };
            let _ = self.wake.set(event);
        }
        let thread = std::thread::Builder::new().name("output".to_owned()).stack_size(STACK);
        // With the signals let through, one of them would end the process although somebody waits to hear of it.
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

    /// Waits until one of the streams can be written to, or there is more to write, or the time is over.
    fn wait(&self, wanted: [bool; 2], timeout: Option<Duration>) -> [bool; 2] {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let wake = self.wake.get().map(|wake| PollFd::new(wake, PollFlags::IN));
        // A stream for which nothing waits is left out: that its reader has gone would be told again and again.
        let streams = [0, 1].map(|index| {
            wanted[index].then(|| PollFd::from_borrowed_fd(self.streams[index], PollFlags::OUT))
        });
        let [out, err] = streams;
        let mut fds: Vec<PollFd<'_>> = [out, err, wake].into_iter().flatten().collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return [false; 2],
            // Cannot wait: the write itself then waits, or says why not.
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

    /// How many columns the terminal has that standard error is.
    fn width(&self) -> usize {
        rustix::termios::tcgetwinsize(self.streams[Stream::Err as usize])
            .map_or(80, |size| size.ws_col.into())
    }

    /// Writes the oldest bytes for a stream that can be written to.
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

    /// From now on nobody waits for a reader that does not read.
    pub fn hurry(&self) {
        self.lock().hurry = true;
        self.changed.notify_all();
    }

    /// Waits until all is written, at most as long as there is reason to and the limit. Returns why standard output
    /// could not be written, if there was something to write and a reader.
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
                // What was waited before the stop does not count.
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

    /// Without a thread the end of the program is when its text is written.
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
