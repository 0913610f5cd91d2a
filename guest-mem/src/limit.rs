//! A limit of a memory cgroup that is low for a moment only: to lower it makes the kernel reclaim.
//!
//! ```text
//!   press: the text ── write ── the kernel reclaims until the group fits, or gives up (EBUSY) ── lifted ── write
//!                                        a page that a thread touches meanwhile ──────────┴── finds no room
//! ```
//!
//! While a limit of version 1 is low, a page fault in the group that finds nothing to reclaim goes to the OOM killer, and
//! this process is the group's only one. Hence both writes follow one another with nothing in between, and the killer is
//! switched off (see [`crate::cgroup`]): then a thread that finds no room waits until the limit is lifted. This thread
//! must not be the one that waits, so its stack is locked in memory for the two writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::io::{Errno, pwrite};

use crate::address::{Address, Hva, PAGE_SIZE};
use crate::range::HvaRange;
use crate::sys;

/// How often one value is written. The kernel gives up (EBUSY) after one pass over the LRU lists that freed nothing, and
/// such a pass is what makes the next one succeed: it clears the accessed bits of pages that a guest has just used.
const ATTEMPTS: u32 = 16;

/// The write that failed, as an attempt, and the kernel's answer.
pub(crate) type Refused = (&'static str, io::Error);

/// A limit's file.
#[derive(Debug)]
pub(crate) struct Limit {
    file: File,
    /// Its text when it limits nothing.
    lifted: &'static str,
}

impl Limit {
    /// The limit in `path`, whose text is `lifted` when it limits nothing.
    pub(crate) fn open(path: &Path, lifted: &'static str) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().write(true).open(path)?, lifted })
    }

    /// Has the kernel reclaim until the group has at most `bytes`, and lifts the limit again; `false` if the kernel never
    /// gets so far.
    pub(crate) fn press(&self, bytes: u64) -> Result<bool, Refused> {
        let text = bytes.to_string();
        for _ in 0..ATTEMPTS {
            let (lowered, lifted) = self.lower_and_lift(text.as_bytes());
            lifted.map_err(|errno| ("restoring", errno.into()))?;
            match lowered {
                Ok(_) => return Ok(true),
                Err(Errno::BUSY | Errno::INTR) => {}
                Err(errno) => return Err(("lowering", errno.into())),
            }
        }
        Ok(false)
    }

    /// Both writes, with nothing in between that could need memory.
    #[inline(never)]
    fn lower_and_lift(&self, low: &[u8]) -> (Result<usize, Errno>, Result<usize, Errno>) {
        let on_stack = 0u8;
        let page = Hva::of(&raw const on_stack).align_down(PAGE_SIZE);
        // This frame's page and the one below it. Locking is best effort: this thread has just used both.
        let below = page.get().checked_sub(PAGE_SIZE).map(Hva::new);
        let frames = below.and_then(|below| HvaRange::with_len(below, 2 * PAGE_SIZE));
        let locked = frames.filter(|frames| sys::lock(*frames).is_ok());
        let lowered = pwrite(&self.file, low, 0);
        let lifted = pwrite(&self.file, self.lifted.as_bytes(), 0);
        if let Some(frames) = locked {
            sys::unlock(frames);
        }
        (lowered, lifted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_was_lowered_is_lifted() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("limit");
        std::fs::write(&path, "1234567").unwrap();
        let limit = Limit::open(&path, "-1").unwrap();
        assert!(limit.press(42).unwrap());
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("-1"));
        Limit::open(&place.path().join("none"), "-1").unwrap_err();
    }

    #[test]
    fn a_write_that_the_kernel_refuses_is_an_error() {
        let limit = Limit::open(Path::new("/dev/full"), "-1").unwrap();
        let (attempt, error) = limit.press(42).unwrap_err();
        assert_eq!((attempt, error.raw_os_error()), ("restoring", Some(libc::ENOSPC)));
    }
}
