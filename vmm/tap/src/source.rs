//! A source of tracepoint records.

use std::os::fd::BorrowedFd;

use super::ring::Damaged;
use super::tracepoints::{Event, Sample};

/// A record of a source.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// A record as the kernel wrote it, to be decoded by its format.
    Sample(Sample<'a>),
    /// A record that the source has decoded.
    Event(Event),
    /// A record that the source cannot decode.
    Malformed,
}

/// A source of tracepoint records, read by one thread at a time.
pub trait Source: Send {
    /// Descriptors that become readable when a buffer is half full. They stay the same for the life of the source.
    fn wakes(&self) -> Vec<BorrowedFd<'_>>;

    /// Passes every record written so far to `sink`. Records of one CPU come in order of time; records of different CPUs do
    /// not.
    ///
    /// # Errors
    /// [`Damaged`]: the source gives no more records.
    fn drain(&mut self, sink: &mut dyn FnMut(Record<'_>)) -> Result<(), Damaged>;

    /// Records that did not fit into a buffer, so far.
    fn lost(&mut self) -> u64;
}
