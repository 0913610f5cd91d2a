//! Messages as they were read, many at a time.
//!
//! A message is more than bytes: with a fork comes a descriptor that the kernel has put into this process.
//! The buffer owns those of the messages it still holds, gives each away once, and closes what nobody took.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::abi::MESSAGE;
use crate::event::{DecodeError, Event, Message};
use crate::sys;

/// Why no messages could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A child's descriptor has no room. The message stays where it is, the forking thread waits, and the
    /// descriptor stays readable.
    #[error("reading a fork event: no descriptor is free for the child's userfaultfd")]
    Descriptors(#[source] Errno),
    /// Something else.
    #[error("reading userfaultfd messages")]
    Other(#[source] Errno),
}

/// Messages that were read and not yet looked at, oldest first. Made once and used again.
#[derive(Debug)]
pub struct EventBuffer {
    messages: Box<[Message]>,
    next: usize,
    end: usize,
}

impl EventBuffer {
    /// Room for so many messages, at least one.
    pub fn new(capacity: usize) -> Self {
        Self { messages: vec![[0; MESSAGE]; capacity.max(1)].into_boxed_slice(), next: 0, end: 0 }
    }

    /// How many messages are here.
    pub fn len(&self) -> usize {
        self.end - self.next
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.next == self.end
    }

    /// The oldest message, decoded, with its descriptor if it has one.
    pub fn pop(&mut self) -> Option<Result<Event, DecodeError>> {
        if self.is_empty() {
            return None;
        }
        let message = self.messages[self.next];
        self.next += 1;
        Some(Event::<RawFd>::decode(&message).map(|event| event.map_descriptor(Self::own)))
    }

    /// Takes all messages, one after the other. What is not taken stays.
    pub fn drain(&mut self) -> impl Iterator<Item = Result<Event, DecodeError>> {
        std::iter::from_fn(|| self.pop())
    }

    /// Owns the descriptor of a message on its way out.
    fn own(raw: RawFd) -> OwnedFd {
        // SAFETY: called by `pop` alone, which passes each message once; and messages come here only by `fill`,
        // from a userfaultfd that this process read.
        unsafe { sys::own_forked(raw) }
    }

    /// Reads as many messages as there are and as fit. What was here stays and comes first.
    pub(crate) fn fill(&mut self, fd: BorrowedFd<'_>) -> Result<usize, ReadError> {
        self.messages.copy_within(self.next..self.end, 0);
        (self.next, self.end) = (0, self.end - self.next);
        let room = self.messages[self.end..].as_flattened_mut();
        if room.is_empty() {
            return Ok(self.len());
        }
        loop {
            match rustix::io::read(fd, &mut *room) {
                Ok(bytes) => self.end += bytes / MESSAGE,
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                Err(errno @ (Errno::MFILE | Errno::NFILE)) => return Err(ReadError::Descriptors(errno)),
                Err(errno) => return Err(ReadError::Other(errno)),
            }
            return Ok(self.len());
        }
    }
}

impl Drop for EventBuffer {
    fn drop(&mut self) {
        // Closes the descriptors of forks nobody looked at.
        self.drain().for_each(drop);
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::encode;
    use super::*;
    use guest_mem::Hva;
    use guest_mem::HvaRange;
    use std::io::{PipeReader, PipeWriter, Write};
    use std::os::fd::{AsFd, AsRawFd, IntoRawFd};

    /// A pipe stands in for the descriptor: it gives messages in the order they are put in.
    fn pipe() -> (PipeReader, PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (reader, writer)
    }

    fn removed(page: u64) -> Event<RawFd> {
        Event::Remove(HvaRange::with_len(Hva::new(page << 12), 4096).unwrap())
    }

    fn pages(buffer: &mut EventBuffer, limit: usize) -> Vec<u64> {
        let page = |event| match event {
            Ok(Event::Remove(range)) => HvaRange::start(range).get() >> 12,
            other => panic!("{other:?}"),
        };
        buffer.drain().take(limit).map(page).collect()
    }

    #[test]
    fn nothing_to_read_is_nothing_read() {
        let (reader, writer) = pipe();
        let mut buffer = EventBuffer::new(0);
        assert_eq!(buffer.fill(reader.as_fd()).unwrap(), 0);
        assert!(buffer.pop().is_none());
        drop(writer);
        assert_eq!(buffer.fill(reader.as_fd()).unwrap(), 0);
    }

    #[test]
    fn messages_left_over_stay_first_and_none_is_lost() {
        let (reader, mut writer) = pipe();
        for page in 0..6 {
            writer.write_all(&encode(removed(page))).unwrap();
        }
        let mut buffer = EventBuffer::new(3);
        assert_eq!(buffer.fill(reader.as_fd()).unwrap(), 3);
        // No room: what is here is not overwritten.
        assert_eq!(buffer.fill(reader.as_fd()).unwrap(), 3);
        assert_eq!(pages(&mut buffer, 2), [0, 1]);
        assert_eq!(buffer.fill(reader.as_fd()).unwrap(), 3);
        assert_eq!(pages(&mut buffer, 9), [2, 3, 4]);
        assert_eq!(buffer.fill(reader.as_fd()).unwrap(), 1);
        assert_eq!(pages(&mut buffer, 9), [5]);
    }

    #[test]
    fn a_forks_descriptor_is_owned_once_and_closed_when_nobody_takes_it() {
        let (reader, mut writer) = pipe();
        // Stand-ins for what the kernel would install: open, and owned by nobody.
        let open: Vec<RawFd> = (0..3).map(|_| std::io::pipe().unwrap().0.into_raw_fd()).collect();
        // Another test may get a number that was closed, but never the same pipe.
        let pipe_at = |raw: &RawFd| std::fs::read_link(format!("/proc/self/fd/{raw}")).ok();
        let before: Vec<_> = open.iter().map(pipe_at).collect();
        for &raw in &open {
            writer.write_all(&encode(Event::Fork(raw))).unwrap();
        }
        let mut buffer = EventBuffer::new(8);
        assert_eq!(buffer.fill(reader.as_fd()).unwrap(), 3);
        let Some(Ok(Event::Fork(first))) = buffer.pop() else { panic!("a fork") };
        assert_eq!(first.as_raw_fd(), open[0]);
        assert_eq!(open.iter().map(pipe_at).collect::<Vec<_>>(), before, "all open, whoever owns them");
        drop(buffer);
        assert_eq!(pipe_at(&open[0]), before[0], "no longer the buffer's");
        assert!((1..3).all(|at| pipe_at(&open[at]) != before[at]), "closed with the buffer");
        drop(first);
        assert_ne!(pipe_at(&open[0]), before[0]);
    }
}
