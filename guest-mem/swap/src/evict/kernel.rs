//! The system calls of an eviction.

use std::time::Duration;

use guest_mem::waits::{Overdue, Patience, WAKE};
use guest_mem::{HvaRange, Operation, PAGE_SIZE, Page, ReclaimError, perform};
use rustix::io::Errno;
use uffd::{ResolveError, ResolveKind};

use super::error::EvictError;
use crate::swapper::Swapper;

impl Swapper {
    /// Repeats a call as long as a mapping changes, and returns its result. No lock may be held: the handler that reads the
    /// event may need it.
    ///
    /// # Errors
    /// No handler reads the event that ends the change.
    pub(crate) fn insist(
        &self,
        call: impl Fn() -> Result<(), ResolveError>,
    ) -> Result<Result<(), ResolveError>, Overdue> {
        insist_for(WAKE, call)
    }

    /// Copies pages to `buffer`, and calls `read` with each that could be read and its place there. A page that was discarded
    /// cannot be read.
    ///
    /// The kernel copies, not loads of this thread: a missing page is an error, not a fault that has to be served, and a page
    /// that is written to meanwhile is torn, not undefined behaviour. Shared memory is read by its file, where pages need not
    /// be mapped, and a hole reads as zeros.
    pub(super) fn copy_out(
        &self,
        range: HvaRange,
        buffer: &mut [Page],
        mut read: impl FnMut(usize, &Page),
    ) -> Result<(), EvictError> {
        let mut at = 0;
        while at < buffer.len() {
            let rest = range.pages().nth(at).and_then(|page| HvaRange::new(page.start(), range.end()));
            let rest = rest.expect("a page of the buffer for each of the range");
            let to = Page::bytes_mut(&mut buffer[at..]);
            let copied = match self.region().memfd().zip(self.region().offset_of(rest.start())) {
                Some((memfd, offset)) => rustix::io::pread(memfd, to, offset),
                None => self.region().copy_out(rest, to),
            };
            match copied {
                // A signal came in between.
                Err(Errno::INTR) => {}
                Ok(bytes) => {
                    let whole = bytes / PAGE_SIZE as usize;
                    (at..).take(whole).for_each(|page| read(page, &buffer[page]));
                    // The copy stopped at the next page.
                    at += whole + 1;
                }
                Err(Errno::FAULT) => at += 1,
                Err(source) => return Err(EvictError::Copy { range: rest, source }),
            }
        }
        Ok(())
    }

    /// Drops pages that are stored: for anonymous memory `MADV_DONTNEED`, for shared memory a hole. After an error some
    /// may be gone.
    pub(super) fn drop_run(&self, range: HvaRange) -> Result<(), ReclaimError> {
        let operation = self.drop_operation();
        if operation == Operation::Fallocate {
            return perform(self.region(), operation, range);
        }
        self.drop_mapping(range)
    }

    /// `MADV_DONTNEED`, with its events marked as the swapper's own.
    pub(crate) fn drop_mapping(&self, range: HvaRange) -> Result<(), ReclaimError> {
        self.own_drops.expect(range);
        let dropped = perform(self.region(), Operation::DontNeed, range);
        // Each event was read, or the call would not have ended. It is matched only when it is acted on.
        self.reading.settle()?;
        self.own_drops.is_over(range);
        dropped
    }

    /// For each page of a range, whether it is still in memory. No thread touches them meanwhile.
    pub(super) fn still_there(&self, range: HvaRange) -> Vec<bool> {
        // A hole is refused as a whole. MADV_DONTNEED of several mappings has dropped those before the one that stopped it.
        let mut there = vec![self.region().backing().is_shared(); range.page_count() as usize];
        if !there[0] {
            // A page of unknown state counts as dropped: if it exists, a fault leaves it as it is.
            for resident in self.residents(range).unwrap_or_default() {
                let first = (resident.start().get() - range.start().get()) / PAGE_SIZE;
                there[first as usize..(first + resident.page_count()) as usize].fill(true);
            }
        }
        there
    }
}

fn insist_for(
    patience: Duration,
    call: impl Fn() -> Result<(), ResolveError>,
) -> Result<Result<(), ResolveError>, Overdue> {
    let mut patience = Patience::new(patience);
    loop {
        match call() {
            Err(ResolveError { kind: ResolveKind::Changing, action, range, .. }) => {
                if let Some(waited) = patience.over() {
                    let what =
                        format!("a fault handler to read the event that keeps {action} of {range} out");
                    return Err(Overdue::new(what, waited));
                }
            }
            done => return Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use guest_mem::Hva;
    use uffd::Action;

    fn refused(kind: ResolveKind) -> ResolveError {
        let range = HvaRange::with_len(Hva::new(0x1000), 0x4000).unwrap();
        ResolveError { action: Action::WriteProtect, range, done: 0, kind }
    }

    #[test]
    fn the_wait_for_a_change_ends() {
        let calls = Cell::new(0);
        let soon = || match calls.replace(calls.get() + 1) {
            0..3 => Err(refused(ResolveKind::Changing)),
            _ => Err(refused(ResolveKind::NoMapping)),
        };
        assert_eq!(insist_for(WAKE, soon), Ok(Err(refused(ResolveKind::NoMapping))));
        let never = || Err(refused(ResolveKind::Changing));
        let overdue = insist_for(Duration::from_millis(20), never).unwrap_err().to_string();
        assert!(
            overdue.contains(
                "waited 20 ms for a fault handler to read the event that keeps UFFDIO_WRITEPROTECT (on) of"
            ),
            "{overdue}"
        );
    }
}
