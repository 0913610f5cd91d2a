//! The guest's output, gathered so that a byte does not cost a wake-up.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use program::output::Sink;

/// So much is gathered before it is passed on in the middle of a line.
const GATHER: usize = 1024;
/// How long the part of a line waits for its end.
const PATIENCE: Duration = Duration::from_millis(10);

/// The serial port's output.
pub struct Output {
    sink: Box<dyn Sink>,
    held: Vec<u8>,
    timer: OwnedFd,
    armed: bool,
}

impl Output {
    pub(super) fn new(sink: Box<dyn Sink>) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { sink, held: Vec::new(), timer, armed: false })
    }

    /// Takes more. A line's end, or a full buffer, passes on what there is; else the timer does.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        if self.held.len() >= GATHER || bytes.contains(&b'\n') {
            self.drain();
        }
        if !self.held.is_empty() {
            self.arm();
        }
    }

    /// Passes on what is held.
    pub fn drain(&mut self) {
        if !self.held.is_empty() {
            self.sink.take(&self.held);
            self.held.clear();
        }
    }

    /// Readable when something has waited long enough.
    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// The timer is readable.
    pub(super) fn timer_expired(&mut self) {
        // Only makes it unreadable; how often it expired does not matter.
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        self.armed = false;
        self.drain();
    }

    fn arm(&mut self) {
        if self.armed {
            return;
        }
        let it_value = Timespec { tv_sec: 0, tv_nsec: PATIENCE.as_nanos() as i64 };
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        // Cannot fail with a valid time; if it did, a later byte would try again.
        self.armed = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok();
    }
}

/// For the UART, which writes byte by byte and flushes after each.
impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.drain();
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Output").field("held", &self.held.len()).finish_non_exhaustive()
    }
}
