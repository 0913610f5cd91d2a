//! Pages in a file without a name.
//!
//! ```text
//!   put   batch ─ Ledger: one extent, or as few as there are ─ pwritev each ─ Ledger: stored ─> Slots
//!   get   Slots ─ Ledger: validated ─ sorted, neighbours merged ─ preadv each ─> pages
//!   free  Slots ─ Ledger: free ─ whole chunks beyond the spare ones are punched out
//! ```

mod disk;
mod extents;
mod image;
mod ledger;
mod page;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

pub use self::disk::FileIo;
use self::disk::{Disk, Failed, Why};
pub use self::image::ImageStore;
use self::ledger::Ledger;
use self::page::{Extent, FilePage};
use super::{Slot, Store, StoreError, Usage, check_shape};
use guest_mem::remedy::{self, Asked};
use guest_mem::{PAGE_SIZE, Page};

const NAME: &str = "file";
/// The kernel's UIO_MAXIOV.
const MAX_PARTS: usize = 1024;
/// The most that a store may hold: as many pages as slots can name is more than any file system's files have.
const MAX_LIMIT: u64 = 1 << 56;

/// A file store that could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "{attempt} a file of {limit} bytes in {dir}, to keep evicted pages{remedy}",
    dir = directory.display(),
    remedy = remedy::after(Asked::FileIn, *source)
)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct FileStoreError {
    pub attempt: &'static str,
    pub directory: PathBuf,
    pub limit: u64,
    pub source: Errno,
}

/// Pages in an unlinked file. A batch is written to one extent of it if there is one as long, and neighbours are read
/// together; room is given back by the MiB. With [`FileIo::Direct`] pages have left the host's memory when `put` returns.
#[derive(Debug)]
pub struct FileStore {
    disk: Disk,
    ledger: Mutex<Ledger>,
    limit: u64,
}

/// Consecutive pages of the file that go to consecutive pages of the batch.
struct Piece<'a> {
    first: FilePage,
    index: usize,
    pages: &'a mut [Page],
}

impl FileStore {
    /// An empty store of at most `limit` bytes (rounded down to pages) in a file of `directory`. The file has no name,
    /// and goes when the store does, or the process.
    ///
    /// # Errors
    /// The directory takes no file, or none of that length.
    pub fn new(directory: &Path, limit: u64) -> Result<Self, FileStoreError> {
        let failed =
            |(attempt, source)| FileStoreError { attempt, directory: directory.into(), limit, source };
        if limit > MAX_LIMIT {
            return Err(failed(("setting the length of", Errno::FBIG)));
        }
        let pages = limit / PAGE_SIZE;
        let disk = Disk::create(directory, pages * PAGE_SIZE).map_err(failed)?;
        Ok(Self { disk, ledger: Mutex::new(Ledger::new(pages)), limit })
    }

    /// Whether it goes past the page cache.
    pub fn io(&self) -> FileIo {
        self.disk.io()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic elsewhere leaves pages taken at worst.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives disk back. The ledger is locked, so that pages which are being punched out are not taken.
    fn settle(&self, _locked: MutexGuard<'_, Ledger>, disk: ledger::Disk) {
        match disk {
            ledger::Disk::Keep => {}
            ledger::Disk::Punch(holes) => {
                for hole in holes {
                    // Where the file system cannot, disk goes back when the store is empty.
                    self.disk.punch(hole);
                }
            }
            ledger::Disk::PunchAll => self.disk.punch_all(),
        }
    }

    fn write(&self, pages: &[Page], extents: &[Extent]) -> Result<(), StoreError> {
        let mut index = 0;
        for extent in extents {
            let end = index + extent.pages as usize;
            let written = self.disk.write(&pages[index..end], extent.first);
            written
                .map_err(|failed| error((NAME, "writing at"), index + failed.pages, extent.first, failed))?;
            index = end;
        }
        Ok(())
    }

    fn check(&self, slots: &[Slot]) -> Result<(), StoreError> {
        let ledger = self.ledger();
        let missing =
            slots.iter().position(|&slot| !FilePage::of(slot).is_some_and(|page| ledger.is_stored(page)));
        match missing {
            None => Ok(()),
            Some(index) => Err(StoreError::NoSuchPage { store: NAME, index, slot: slots[index] }),
        }
    }
}

impl Store for FileStore {
    fn name(&self) -> &'static str {
        NAME
    }

    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        let taken = self.ledger().take(pages.len() as u64);
        let full = || StoreError::Full { store: NAME, limit: self.limit, usage: self.usage() };
        let extents = taken.ok_or_else(full)?;
        if let Err(error) = self.write(pages, &extents) {
            let mut ledger = self.ledger();
            let disk = ledger.abandon(extents);
            self.settle(ledger, disk);
            return Err(error);
        }
        self.ledger().keep(&extents);
        for (slot, page) in slots.iter_mut().zip(extents.into_iter().flat_map(Extent::each)) {
            *slot = page.slot();
        }
        Ok(())
    }

    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        self.check(slots)?;
        read(&self.disk, NAME, slots, pages).map(drop)
    }

    fn free(&self, slots: &[Slot]) {
        let mut ledger = self.ledger();
        let disk = ledger.free(slots.iter().filter_map(|&slot| FilePage::of(slot)));
        self.settle(ledger, disk);
    }

    fn usage(&self) -> Usage {
        let pages = self.ledger().stored();
        let stored_bytes = pages * PAGE_SIZE;
        // fstat of an open file fails only on network file systems; then the stored bytes are the lower bound.
        Usage { pages, stored_bytes, held_bytes: self.disk.held().unwrap_or(stored_bytes) }
    }
}

/// Reads each slot's page, neighbours together: one call for each run of the file. Returns the number of calls.
fn read(disk: &Disk, store: &'static str, slots: &[Slot], pages: &mut [Page]) -> Result<u64, StoreError> {
    let mut pieces = pieces(slots, pages);
    pieces.sort_unstable_by_key(|piece| piece.first);
    let end = |piece: &Piece<'_>| piece.first.after(piece.pages.len() as u64);
    let mut calls = 0;
    for run in pieces.chunk_by_mut(|piece, next| end(piece) == next.first) {
        for run in run.chunks_mut(MAX_PARTS) {
            let first = run[0].first;
            let mut parts: Vec<&mut [Page]> = run.iter_mut().map(|piece| &mut *piece.pages).collect();
            if let Err(failed) = disk.read(&mut parts, first) {
                let index = index_after(run, failed.pages);
                return Err(error((store, "reading at"), index, first, failed));
            }
            calls += 1;
        }
    }
    Ok(calls)
}

/// Cuts a batch where neither the file nor the batch goes on with the next page.
fn pieces<'a>(slots: &[Slot], mut pages: &'a mut [Page]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let mut index = 0;
    for run in slots.chunk_by(|slot, next| slot.raw() + 1 == next.raw()) {
        let (these, rest) = std::mem::take(&mut pages).split_at_mut(run.len());
        let first = FilePage::of(run[0]).expect("the slots are checked");
        pieces.push(Piece { first, index, pages: these });
        pages = rest;
        index += run.len();
    }
    pieces
}

/// The place in the batch of the page that comes after the first `done` of these pieces.
fn index_after(pieces: &[Piece<'_>], mut done: usize) -> usize {
    for piece in pieces {
        if done < piece.pages.len() {
            return piece.index + done;
        }
        done -= piece.pages.len();
    }
    pieces.last().map_or(0, |piece| piece.index)
}

/// The error of a transfer that began at page `first` of the file and failed at page `index` of the batch.
fn error(
    (store, attempt): (&'static str, &'static str),
    index: usize,
    first: FilePage,
    failed: Failed,
) -> StoreError {
    let offset = first.after(failed.pages as u64).offset();
    match failed.why {
        Why::Errno(source) => StoreError::Io { store, attempt, index, offset, source },
        Why::Short { wanted, done } => StoreError::Short { store, attempt, index, offset, wanted, done },
    }
}
