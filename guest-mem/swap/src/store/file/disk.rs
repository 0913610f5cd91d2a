//! The file itself: opened so that it goes with the process, read and written by the whole page.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;

use guest_mem::{PAGE_SIZE, Page};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::page::{Extent, FilePage};

/// How a file store reaches its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileIo {
    /// Past the page cache, from and to the caller's pages.
    Direct,
    /// Through the page cache, because the file system has no direct I/O by the page, or is itself in memory: evicted pages
    /// stay in the host's memory until the kernel has written them back and reclaimed them.
    Buffered,
}

/// A transfer that did not go through.
#[derive(Debug)]
pub(super) struct Failed {
    /// Whole pages done before.
    pub(super) pages: usize,
    pub(super) why: Why,
}

#[derive(Debug)]
pub(super) enum Why {
    Errno(Errno),
    /// The call stopped within a page.
    Short {
        wanted: usize,
        done: usize,
    },
}

/// A failed step of opening the file: the attempt, and the kernel's answer.
pub(super) type NotOpened = (&'static str, Errno);

#[derive(Debug)]
pub(super) struct Disk {
    file: OwnedFd,
    io: FileIo,
    len: u64,
}

impl Disk {
    /// A file without a name in `directory`, of `len` bytes that are all hole.
    pub(super) fn create(directory: &Path, len: u64) -> Result<Self, NotOpened> {
        let file = match open(directory, OFlags::DIRECT) {
            Ok(file) => {
                let disk = Self { file, io: FileIo::Direct, len };
                if !disk.is_memory() && disk.works()? {
                    return disk.sized();
                }
                disk.file
            }
            Err(Errno::INVAL) => open(directory, OFlags::empty()).map_err(|errno| ("making", errno))?,
            Err(errno) => return Err(("making", errno)),
        };
        // The open file may have been granted direct I/O in name only.
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|errno| ("reading the flags of", errno))?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::DIRECT)
            .map_err(|errno| ("setting the flags of", errno))?;
        Self { file, io: FileIo::Buffered, len }.sized()
    }

    /// An existing file, of which `len` bytes are read, through the page cache.
    pub(super) fn of(file: OwnedFd, len: u64) -> Self {
        Self { file, io: FileIo::Buffered, len }
    }

    /// Whether the file system is tmpfs, which takes the flag (from 6.6) and is a page cache and no more.
    fn is_memory(&self) -> bool {
        const TMPFS_MAGIC: u64 = 0x0102_1994;
        rustix::fs::fstatfs(&self.file).is_ok_and(|stat| stat.f_type as u64 == TMPFS_MAGIC)
    }

    /// Tries direct I/O of one page: some file systems take the flag and then want more than a page's alignment.
    fn works(&self) -> Result<bool, NotOpened> {
        let mut page = [Page::ZERO];
        match self.write(&page, FilePage::FIRST).and_then(|()| self.read(&mut [&mut page], FilePage::FIRST)) {
            Ok(()) => Ok(true),
            Err(Failed { why: Why::Errno(Errno::INVAL), .. }) => Ok(false),
            Err(Failed { why: Why::Errno(errno), .. }) => Err(("writing a first page to", errno)),
            Err(Failed { why: Why::Short { .. }, .. }) => Err(("writing a first page to", Errno::NOSPC)),
        }
    }

    /// The full length at once: writes that do not extend a file take its lock shared.
    fn sized(self) -> Result<Self, NotOpened> {
        let failed = |errno| ("setting the length of", errno);
        rustix::fs::ftruncate(&self.file, 0).map_err(failed)?;
        rustix::fs::ftruncate(&self.file, self.len).map_err(failed)?;
        Ok(self)
    }

    pub(super) fn io(&self) -> FileIo {
        self.io
    }

    /// Bytes of disk behind the file.
    pub(super) fn held(&self) -> Result<u64, Errno> {
        // st_blocks is in units of 512, whatever the file system's blocks are.
        rustix::fs::fstat(&self.file).map(|stat| stat.st_blocks as u64 * 512)
    }

    /// Writes the pages at page `first` of the file.
    pub(super) fn write(&self, pages: &[Page], first: FilePage) -> Result<(), Failed> {
        let bytes = Page::bytes(pages);
        transfer(bytes.len(), first, |done, offset| {
            rustix::io::pwritev(&self.file, &[IoSlice::new(&bytes[done..])], offset)
        })
    }

    /// Reads from page `first` of the file into each part in turn.
    pub(super) fn read(&self, parts: &mut [&mut [Page]], first: FilePage) -> Result<(), Failed> {
        let mut buffers: Vec<IoSliceMut<'_>> =
            parts.iter_mut().map(|part| IoSliceMut::new(Page::bytes_mut(part))).collect();
        let mut buffers = buffers.as_mut_slice();
        let mut read = 0;
        transfer(buffers.iter().map(|buffer| buffer.len()).sum(), first, |done, offset| {
            IoSliceMut::advance_slices(&mut buffers, done - read);
            read = done;
            rustix::io::preadv(&self.file, buffers, offset)
        })
    }

    /// Gives the disk behind these pages back. Returns whether the file system could.
    pub(super) fn punch(&self, Extent { first, pages }: Extent) -> bool {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, first.offset(), pages * PAGE_SIZE).is_ok()
    }

    /// Gives all of the disk back. No thread may read or write meanwhile.
    pub(super) fn punch_all(&self) {
        if self.held() != Ok(0) && !self.punch(Extent { first: FilePage::FIRST, pages: self.len / PAGE_SIZE })
        {
            // Without holes, by length. If it cannot even be set, reads and writes say so.
            let _ = rustix::fs::ftruncate(&self.file, 0)
                .and_then(|()| rustix::fs::ftruncate(&self.file, self.len));
        }
    }

    /// The file, to be cut short or filled up by a test.
    #[cfg(test)]
    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }
}

/// Repeats `step` until `len` bytes from page `first` on are done; it is told how many are. A call that stops early
/// goes on from the last whole page, since direct I/O can start nowhere else; one that does not get so far has
/// failed.
fn transfer(
    len: usize,
    first: FilePage,
    mut step: impl FnMut(usize, u64) -> Result<usize, Errno>,
) -> Result<(), Failed> {
    const PAGE: usize = PAGE_SIZE as usize;
    let mut done = 0;
    while done < len {
        let failed = |why| Err(Failed { pages: done / PAGE, why });
        match step(done, first.offset() + done as u64) {
            Ok(moved) if moved < PAGE => return failed(Why::Short { wanted: len - done, done: moved }),
            Ok(moved) => done += moved / PAGE * PAGE,
            Err(Errno::INTR) => {}
            Err(errno) => return failed(Why::Errno(errno)),
        }
    }
    Ok(())
}

/// A file that no other process can open, and that ends with this process.
fn open(directory: &Path, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | more;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        // No O_TMPFILE: overlayfs before 6.3, NFS, FAT; and old kernels, which take it for a directory to write to.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {}
        other => return other,
    }
    for attempt in 0..1000 {
        let path = directory.join(format!(".evicted-pages-{}-{attempt}", std::process::id()));
        match rustix::fs::open(&path, flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Ok(file) => return rustix::fs::unlink(&path).map(|()| file),
            Err(Errno::EXIST) => {}
            Err(errno) => {
                // Some file systems refuse O_DIRECT after they have made the file.
                let _ = rustix::fs::unlink(&path);
                return Err(errno);
            }
        }
    }
    Err(Errno::EXIST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A medium that moves at most so many bytes a call, and after so many calls says `end`.
    fn moved(per_call: &[Result<usize, Errno>], pages: usize) -> (Result<(), Failed>, Vec<(usize, u64)>) {
        let mut calls = Vec::new();
        let mut answers = per_call.iter();
        let done = transfer(pages * 4096, FilePage::new(10), |done, offset| {
            calls.push((done, offset));
            *answers.next().expect("no more calls than answers")
        });
        (done, calls)
    }

    #[test]
    fn a_short_call_goes_on_from_the_last_whole_page() {
        let (done, calls) = moved(&[Ok(4096), Err(Errno::INTR), Ok(5000), Ok(8192)], 4);
        done.unwrap();
        assert_eq!(calls, [(0, 40960), (4096, 45056), (4096, 45056), (8192, 49152)]);
    }

    #[test]
    fn a_file_is_reached_past_the_page_cache_where_its_file_system_can_do_that_by_the_page() {
        let directory = std::env::temp_dir();
        let disk = Disk::create(&directory, 4 << 20).unwrap();
        let by_the_page = open(&directory, OFlags::DIRECT)
            .and_then(|file| rustix::io::pwrite(&file, Page::bytes(&[Page::ZERO]), PAGE_SIZE))
            .is_ok_and(|written| written as u64 == PAGE_SIZE);
        assert_eq!(disk.io() == FileIo::Direct, by_the_page && !disk.is_memory());
    }

    #[test]
    fn a_call_that_does_not_move_a_page_has_failed() {
        for stuck in [0, 4095] {
            let failed = moved(&[Ok(8192), Ok(stuck)], 4).0.unwrap_err();
            assert_eq!(failed.pages, 2);
            assert!(matches!(failed.why, Why::Short { wanted: 8192, done } if done == stuck));
        }
        let failed = moved(&[Ok(4096), Err(Errno::NOSPC)], 4).0.unwrap_err();
        assert!(matches!(failed, Failed { pages: 1, why: Why::Errno(Errno::NOSPC) }));
    }
}
