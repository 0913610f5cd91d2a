//! Messages as they were read, many at a time.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, retry_on_intr};

use crate::abi::MESSAGE;
use crate::event::{DecodeError, Event, Message};

/// Messages could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading userfaultfd messages")]
pub struct ReadError(#[source] pub Errno);

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

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.next == self.end
    }

    /// The oldest message, decoded.
    pub fn pop(&mut self) -> Option<Result<Event, DecodeError>> {
        if self.is_empty() {
            return None;
        }
        let message = self.messages[self.next];
        self.next += 1;
        Some(Event::decode(&message))
    }

    /// Reads as many messages as there are and as fit, behind those that are here.
    pub(crate) fn fill(&mut self, fd: BorrowedFd<'_>) -> Result<(), ReadError> {
        self.messages.copy_within(self.next..self.end, 0);
        (self.next, self.end) = (0, self.end - self.next);
        let room = self.messages[self.end..].as_flattened_mut();
        if room.is_empty() {
            return Ok(());
        }
        match retry_on_intr(|| rustix::io::read(fd, &mut *room)) {
            Ok(bytes) => self.end += bytes / MESSAGE,
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(ReadError(errno)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::tests::encode;
    use super::*;
    use guest_mem::Hva;
    use guest_mem::HvaRange;
    use std::io::{PipeReader, PipeWriter, Write};
    use std::os::fd::AsFd;

    /// A pipe stands in for the descriptor: it gives messages in the order they are put in.
    fn pipe() -> (PipeReader, PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (reader, writer)
    }

    fn removed(page: u64) -> Event {
        Event::Remove(HvaRange::with_len(Hva::new(page << 12), 4096).unwrap())
    }

    fn pages(buffer: &mut EventBuffer, limit: usize) -> Vec<u64> {
        let page = |event| match event {
            Ok(Event::Remove(range)) => HvaRange::start(range).get() >> 12,
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(|| buffer.pop()).take(limit).map(page).collect()
    }

    #[test]
    fn nothing_to_read_is_nothing_read() {
        let (reader, writer) = pipe();
        let mut buffer = EventBuffer::new(0);
        buffer.fill(reader.as_fd()).unwrap();
        assert!(buffer.pop().is_none());
        drop(writer);
        buffer.fill(reader.as_fd()).unwrap();
        assert!(buffer.is_empty());
    }

    #[test]
    fn messages_left_over_stay_first_and_none_is_lost() {
        let (reader, mut writer) = pipe();
        for page in 0..6 {
            writer.write_all(&encode(removed(page))).unwrap();
        }
        let mut buffer = EventBuffer::new(3);
        buffer.fill(reader.as_fd()).unwrap();
        // No room: what is here is not overwritten.
        buffer.fill(reader.as_fd()).unwrap();
        assert_eq!(pages(&mut buffer, 2), [0, 1]);
        buffer.fill(reader.as_fd()).unwrap();
        assert_eq!(pages(&mut buffer, 9), [2, 3, 4]);
        buffer.fill(reader.as_fd()).unwrap();
        assert_eq!(pages(&mut buffer, 9), [5]);
    }
}
