//! The guest's output, gathered so that a byte does not cost a system call.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// So much is gathered before it is written in the middle of a line.
const GATHER: usize = 1024;
/// So much is kept for a sink that would block. What comes after is lost, and counted.
const KEEP: usize = 64 << 10;
/// How long the part of a line waits for its end.
const PATIENCE: Duration = Duration::from_millis(10);

/// The serial port's output. A sink that fails for good swallows everything from then on: the guest never notices.
pub struct Output {
    sink: Box<dyn Write + Send>,
    held: Vec<u8>,
    /// The sink has been given what it has not passed on.
    unflushed: bool,
    failed: Option<ErrorKind>,
    lost: u64,
    timer: OwnedFd,
    armed: bool,
}

impl Output {
    pub(super) fn new(sink: Box<dyn Write + Send>) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { sink, held: Vec::new(), unflushed: false, failed: None, lost: 0, timer, armed: false })
    }

    /// How the sink failed, if it has: nothing is written any more.
    pub fn failed(&self) -> Option<ErrorKind> {
        self.failed
    }

    /// Bytes that went nowhere.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Writes what is held, as far as the sink takes it without blocking; if it does not take all, the timer tries
    /// again.
    pub fn drain(&mut self) {
        if self.held.is_empty() && !self.unflushed {
            return;
        }
        if let Err(error) = self.try_drain() {
            if error.kind() == ErrorKind::WouldBlock {
                self.arm();
                return;
            }
            self.failed = Some(error.kind());
            self.unflushed = false;
            self.lost += self.held.len() as u64;
            self.held = Vec::new();
        }
    }

    fn try_drain(&mut self) -> io::Result<()> {
        let mut done = 0;
        let result = loop {
            if done == self.held.len() {
                break Ok(());
            }
            match self.sink.write(&self.held[done..]) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    done += written;
                    self.unflushed = true;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.held.drain(..done);
        result?;
        self.sink.flush()?;
        self.unflushed = false;
        Ok(())
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

impl Write for Output {
    /// Takes all there is: what cannot be written is counted.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = if self.failed.is_some() { 0 } else { KEEP - self.held.len() };
        let kept = bytes.len().min(room);
        self.held.extend_from_slice(&bytes[..kept]);
        self.lost += (bytes.len() - kept) as u64;
        if self.held.len() >= GATHER || bytes.contains(&b'\n') {
            self.drain();
        }
        if !self.held.is_empty() {
            self.arm();
        }
        Ok(bytes.len())
    }

    /// The UART flushes after each byte; when to write is decided here.
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
        out.debug_struct("Output")
            .field("failed", &self.failed)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}
