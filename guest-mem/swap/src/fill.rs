//! Fills missing pages with content.
//!
//! ```text
//!   fill(rest) ─ all ──────────────────────> there
//!      │  Stopped ─ some are ──────────────> fill(rest), which tells the reason
//!      │  Exists  ─ the first one is ──────> woken: they look again ── fill(rest)
//!      │              └─ out, and in the page cache: written over there
//!      └─ anything else ───────────────────> the pages that are there, and the error
//! ```
//!
//! Shared memory too is filled by `UFFDIO_COPY`. The other way, into the page cache and then `UFFDIO_CONTINUE`, is never
//! faster (the bench `userfault`, part `shared`): by pwrite(2) it takes 1.02 to 1.12 times as long, by a second mapping,
//! whose pages are cleared first and which every hole has to unmap as well, 1.07 to 1.56 times. A page that is in the page
//! cache already is mapped by `UFFDIO_CONTINUE`: see `Pager`.

use guest_mem::{Address, HvaRange, PAGE_SIZE, Page};
use rustix::io::Errno;
use uffd::{Action, MapAs, ResolveError, ResolveKind, Wake};

use crate::swapper::Swapper;

/// The source of a missing page's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Store,
    /// The zero page, which costs no memory until it is written to.
    ZeroPage,
    /// A page of zeros of its own, since it is written to at once.
    Zeros,
}

/// How far a range was filled.
pub(crate) struct Filled {
    /// Pages that are there, from the start on.
    pub pages: usize,
    /// Whether any of them was missing.
    pub missing: bool,
    /// The error that kept the rest from being filled.
    pub result: Result<(), ResolveError>,
}

impl Swapper {
    /// Fills the missing pages of a range, with `content` if they come from the store, and wakes the threads that wait for
    /// them.
    pub(crate) fn fill(&self, range: HvaRange, source: Source, content: &[Page]) -> Filled {
        let (mut done, mut missing) = (0, false);
        loop {
            let filled = |result| Filled { pages: (done / PAGE_SIZE) as usize, missing, result };
            let at = range.start().checked_add(done).expect("inside the range");
            let rest = HvaRange::new(at, range.end()).expect("inside the range");
            if rest.is_empty() {
                return filled(Ok(()));
            }
            let content = |pages| {
                let first = (done / PAGE_SIZE) as usize;
                let from = if source == Source::Zeros { &self.zeros } else { content };
                Page::bytes(&from[first..first + pages as usize])
            };
            let tried = match source {
                Source::ZeroPage => self.userfault.zero(rest, Wake::Yes),
                Source::Store | Source::Zeros => {
                    self.userfault.copy(at, content(rest.page_count()), MapAs::Writable, Wake::Yes)
                }
            };
            match tried {
                Ok(()) => (missing, done) = (true, range.len()),
                Err(ResolveError { kind: ResolveKind::Stopped, done: bytes, .. }) => {
                    missing = true;
                    done += bytes;
                }
                Err(ResolveError { kind: ResolveKind::Exists, .. }) => {
                    let met = HvaRange::with_len(at, PAGE_SIZE).expect("inside the range");
                    let put = if source == Source::Store { self.write_over(met, content(1)) } else { Ok(()) };
                    // The kernel wakes waiters of pages that it filled, not of pages that existed.
                    if let Err(error) = put.and_then(|()| self.userfault.wake(met)) {
                        return filled(Err(error));
                    }
                    done += PAGE_SIZE;
                }
                Err(error) => return filled(Err(error)),
            }
        }
    }

    /// Writes the content of a page that is out but still in the page cache. It is mapped nowhere. Private memory has no such
    /// page: an existing page there is left as it is.
    fn write_over(&self, page: HvaRange, content: &[u8]) -> Result<(), ResolveError> {
        let region = self.region();
        let Some((file, offset)) = region.memfd().zip(region.offset_of(page.start())) else { return Ok(()) };
        // A write to shmem takes a page whole or not at all.
        let why = match rustix::io::pwrite(file, content, offset) {
            Ok(written) if written == content.len() => return Ok(()),
            Ok(_) => Errno::IO,
            Err(errno) => errno,
        };
        Err(ResolveError { action: Action::Copy, range: page, done: 0, kind: ResolveKind::Other(why) })
    }
}
