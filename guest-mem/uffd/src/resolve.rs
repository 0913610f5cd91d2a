//! The result of a resolving ioctl: how far it came, and what stopped it. Pure.
//!
//! The rules of `fs/userfaultfd.c` and `mm/userfaultfd.c` (6.12):
//!
//! - The count comes back in the structure and the errno beside it. A **positive count less than all** is always
//!   answered with `EAGAIN`, whatever stopped the ioctl there, an existing page or a lack of memory as well: the
//!   reason is only told by the next call, for the rest ([`ResolveKind::Stopped`]). A wake-up, if one was asked
//!   for, was given for what was done.
//! - With nothing done the count is the negative errno, or is left as it was when the arguments or the process
//!   were at fault. Either way nothing was done.
//! - `EAGAIN` with nothing done is `mmap_changing`: an event of this descriptor was raised and its thread has not
//!   gone on yet. It ends when the event is **read** ([`ResolveKind::Changing`]).
//! - `UFFDIO_WRITEPROTECT` has no count. It may have done a part when it fails, and may be repeated. Holes between
//!   mappings it passes over without an error.
//! - All ioctls but that one want one single mapping under the whole range: across a seam between two it is
//!   `ENOENT`, though both are registered.

use std::fmt;

use guest_mem::HvaRange;
use rustix::io::Errno;

/// The ioctl on a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the methods of `Userfault` that bear these names say it")]
pub enum Action {
    Copy,
    Zero,
    Move,
    Continue,
    WriteProtect,
    WriteUnprotect,
    Wake,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Copy => "UFFDIO_COPY",
            Self::Zero => "UFFDIO_ZEROPAGE",
            Self::Move => "UFFDIO_MOVE",
            Self::Continue => "UFFDIO_CONTINUE",
            Self::WriteProtect => "UFFDIO_WRITEPROTECT (on)",
            Self::WriteUnprotect => "UFFDIO_WRITEPROTECT (off)",
            Self::Wake => "UFFDIO_WAKE",
        })
    }
}

/// A range that was not done, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{action} of {range}, {done} bytes done: {kind}")]
pub struct ResolveError {
    /// The ioctl.
    pub action: Action,
    /// The pages that the call was for.
    pub range: HvaRange,
    /// Bytes done, from the start of the range on: exact, but for write protection, which does not count.
    pub done: u64,
    /// The reason why the rest was not resolved.
    pub kind: ResolveKind,
}

/// The reason why a range was not resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ResolveKind {
    /// `EAGAIN` with a count: a part was done. The call for the rest tells the reason.
    #[error("it stopped there, the call for the rest will say why")]
    Stopped,
    /// `EAGAIN` without: a mapping is changing. Read the events, then try again.
    #[error("a mapping changes, until its event is read")]
    Changing,
    /// `EEXIST`: the first page is there. For [`Action::Zero`] and [`Action::Move`] also: it
    /// is not there, but write-protected all the same (see [`crate::Features::WP_UNPOPULATED`]); a copy fills it.
    #[error("the page is there already")]
    Exists,
    /// `ENOENT`: no mapping, not registered (for this), or more than one mapping. Of a move also: nothing is at
    /// the source.
    #[error("no single registered mapping is there, or nothing at a move's source")]
    NoMapping,
    /// `ESRCH`: the process whose memory it is has gone.
    #[error("the process has gone")]
    Dead,
    /// `ENOMEM`, memory cgroup limits included.
    #[error("no memory for it: free memory on the host, or raise the limit of this cgroup")]
    NoMemory,
    /// `EBUSY`: a page that was to move is pinned, or shared with a child: after a fork, even when the child is gone,
    /// each page stays so until it is written. It can still be copied.
    #[error("a page to be moved is shared or pinned")]
    Busy,
    /// `EFAULT`: the source of a copy cannot be read, the page to be continued is not in the page cache, or the file ends
    /// before it.
    #[error("nothing can be read at the source, or behind the end of the file")]
    Unreadable,
    /// `EINVAL`: an empty or unaligned range, or a mapping of a kind, or registered in a way, that does not
    /// allow it.
    #[error("the range is unaligned or empty, or its mapping is not of the kind or mode for it")]
    Invalid,
    /// Anything else.
    #[error("{0}")]
    Other(Errno),
}

/// The result of an ioctl, from its return value and from the count in its structure, which was 0 before the call.
pub(crate) fn outcome(
    action: Action,
    range: HvaRange,
    returned: Result<(), Errno>,
    count: i64,
) -> Result<(), ResolveError> {
    let Err(errno) = returned else { return Ok(()) };
    // Only EAGAIN comes with a count that is one.
    let done = match (errno, u64::try_from(count)) {
        (Errno::AGAIN, Ok(done)) => done.min(range.len()),
        _ => 0,
    };
    let kind = match errno {
        Errno::AGAIN if done > 0 => ResolveKind::Stopped,
        Errno::AGAIN => ResolveKind::Changing,
        Errno::EXIST => ResolveKind::Exists,
        Errno::NOENT => ResolveKind::NoMapping,
        Errno::SRCH => ResolveKind::Dead,
        Errno::NOMEM => ResolveKind::NoMemory,
        Errno::BUSY => ResolveKind::Busy,
        Errno::FAULT => ResolveKind::Unreadable,
        Errno::INVAL => ResolveKind::Invalid,
        other => ResolveKind::Other(other),
    };
    Err(ResolveError { action, range, done, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::Hva;

    fn of(returned: Result<(), Errno>, count: i64) -> Result<(), (u64, ResolveKind)> {
        let range = HvaRange::with_len(Hva::new(0x1000), 0x4000).unwrap();
        outcome(Action::Copy, range, returned, count).map_err(|error| (error.done, error.kind))
    }

    #[test]
    fn only_again_has_a_count() {
        assert_eq!(of(Ok(()), 0x4000), Ok(()));
        assert_eq!(of(Err(Errno::AGAIN), 0x2000), Err((0x2000, ResolveKind::Stopped)));
        // What mmap_changing leaves behind, and what it leaves where it did not get to write.
        assert_eq!(of(Err(Errno::AGAIN), -11), Err((0, ResolveKind::Changing)));
        assert_eq!(of(Err(Errno::AGAIN), 0), Err((0, ResolveKind::Changing)));
        assert_eq!(of(Err(Errno::EXIST), -17), Err((0, ResolveKind::Exists)));
        assert_eq!(of(Err(Errno::SRCH), 0), Err((0, ResolveKind::Dead)));
        assert_eq!(of(Err(Errno::PERM), 0x1000), Err((0, ResolveKind::Other(Errno::PERM))));
    }

    #[test]
    fn a_count_beyond_the_range_is_cut() {
        assert_eq!(of(Err(Errno::AGAIN), i64::MAX), Err((0x4000, ResolveKind::Stopped)));
    }
}
