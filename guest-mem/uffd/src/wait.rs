//! Waiting for messages, with a way to be told to stop.
//!
//! ```text
//!   fault ─> fd_wqh: wake_up_poll, one exclusive waiter        Stop::raise ─> all
//!              ├─ epoll of handler 0 (EPOLLEXCLUSIVE) ─ asleep in it? woken, and no other ────┐
//!              └─ epoll of handler 1 (EPOLLEXCLUSIVE) ─ busy? passed over, looks again later  ├─ wait() returns
//!                                    each with the Stop's eventfd (not exclusive) ────────────┘
//! ```
//!
//! Why epoll, and one for each thread: in `fs/userfaultfd.c` a fault and an event wake the descriptor's queue
//! with `wake_up_poll(&ctx->fd_wqh, EPOLLIN)`: all non-exclusive waiters, and one exclusive waiter. A thread
//! in poll(2) is not exclusive, nor is one in a blocking read(2): with either all handlers run for each fault and
//! all but one find nothing. Only epoll can add itself exclusively. An epoll of each thread's own is then also
//! what makes it safe: the kernel counts the wake-up as delivered only if a thread was asleep in that epoll, and
//! goes on to the next one otherwise, so a fault that arrives while one handler is on its way wakes another; and
//! one that finds all busy is seen by each of them at its next wait, because the interest is level-triggered. So
//! nothing need be read until EAGAIN: wait, read once, serve. A single epoll for all threads would have to be
//! edge-triggered to wake one thread alone, and then a thread that does not read everything loses a fault.
//!
//! The first handler asleep in the order they were made is the one woken, always: under light load one thread
//! serves everything and stays warm. Which core a fault came from plays no part. Handlers that are each bound to a core
//! want the opposite, [`Waiter::always_woken`]: the one on the fault's core finds the message while the others are still
//! on their way, and those look again inside epoll_wait(2) without returning from it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, retry_on_intr};

use crate::handle::Userfault;

/// A flag that any thread can raise and that every [`Waiter`] sees. It never goes down.
#[derive(Debug)]
pub struct Stop(OwnedFd);

impl Stop {
    /// A flag that is down.
    pub fn new() -> Result<Self, Errno> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self)
    }

    /// Raises it. Raising it again changes nothing.
    ///
    /// # Errors
    /// No known kernel fails.
    pub fn raise(&self) -> Result<(), Errno> {
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            // Full: raised often enough.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The reason why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There are messages to read, unless another thread is faster.
    Events,
    /// [`Stop`] is up. There may be messages as well.
    Stop,
}

/// One thread's place to wait for the messages of one descriptor. Any number may wait for the same one.
#[derive(Debug)]
pub struct Waiter(OwnedFd);

const EVENTS: u64 = 0;
const STOP: u64 = 1;

impl Waiter {
    /// A place to wait. It watches `userfault` as long as that lives, and `stop` likewise.
    pub fn new(userfault: &Userfault, stop: &Stop) -> Result<Self, Errno> {
        Self::with(userfault, stop, EventFlags::IN | EventFlags::EXCLUSIVE)
    }

    /// A place to wait that is woken for each message, also if others are. After [`Woken::Events`] another thread may have
    /// read the message.
    pub fn always_woken(userfault: &Userfault, stop: &Stop) -> Result<Self, Errno> {
        Self::with(userfault, stop, EventFlags::IN)
    }

    fn with(userfault: &Userfault, stop: &Stop, events: EventFlags) -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, userfault, EventData::new_u64(EVENTS), events)?;
        epoll::add(&epoll, stop, EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(Self(epoll))
    }

    /// Sleeps until there are messages or `stop` is up.
    ///
    /// # Errors
    /// The descriptor reports an error instead of messages.
    pub fn wait(&self) -> Result<Woken, Errno> {
        let mut ready = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(EVENTS) }; 2];
        loop {
            let count = retry_on_intr(|| epoll::wait(&self.0, &mut ready[..], None))?;
            let ready = &ready[..count];
            if ready.iter().any(|one| one.data.u64() == STOP) {
                return Ok(Woken::Stop);
            }
            match ready.first() {
                Some(event) if { event.flags }.contains(EventFlags::IN) => return Ok(Woken::Events),
                // Before its handshake, or without O_NONBLOCK, a userfaultfd reports nothing but this.
                Some(_) => return Err(Errno::IO),
                None => {}
            }
        }
    }
}
