//! Where records of tracepoints come from.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::hit::Sample;
use super::page::DamagedPage;
use super::ring::Damaged;
use super::tracepoints::Event;

/// What a source has to tell.
#[derive(Clone, Copy, Debug)]
pub enum Heard<'a> {
    /// A record as the kernel wrote it, to be decoded by its format.
    Sample(Sample<'a>),
    /// One that its source has decoded.
    Event(Event),
    /// One that its source could make nothing of.
    Nonsense,
}

/// A source of tracepoint records, read by one thread at a time.
pub trait Source: Send {
    /// Descriptors that become readable when much has gathered. They are the same as long as the source lives.
    fn wakes(&self) -> Vec<BorrowedFd<'_>>;

    /// Gives everything that was recorded by now to `sink`. Records of one CPU come in order of time; those of several
    /// CPUs do not.
    ///
    /// # Errors
    /// [`SourceError`]: nothing more can be had from it.
    fn drain(&mut self, sink: &mut dyn FnMut(Heard<'_>)) -> Result<(), SourceError>;

    /// Records that found no room, so far.
    fn lost(&mut self) -> u64;
}

/// A source that has nothing more to give.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A perf ring is damaged.
    #[error(transparent)]
    Ring(#[from] Damaged),
    /// A tracefs buffer cannot be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Why an instance has nothing more to give.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A page makes no sense.
    #[error(transparent)]
    Page(#[from] DamagedPage),
    /// A read failed.
    #[error("reading the trace buffer of a CPU: was its instance removed?")]
    Read(#[source] Errno),
}
