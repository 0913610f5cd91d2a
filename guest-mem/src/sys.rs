//! The system calls of this crate, and nothing else: each takes typed ranges and gives back an errno.
//!
//! rustix where it has the call; libc for `PAGEMAP_SCAN`, `MADV_COLLAPSE`, `mincore` and swap devices.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use linux_raw_sys::general::{self, page_region, pm_scan_arg};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::address::{Address, Hva};
use crate::range::HvaRange;

pub(crate) const PAGE_IS_FILE: u64 = general::PAGE_IS_FILE as u64;
pub(crate) const PAGE_IS_PRESENT: u64 = general::PAGE_IS_PRESENT as u64;
pub(crate) const PAGE_IS_SWAPPED: u64 = general::PAGE_IS_SWAPPED as u64;
pub(crate) const PAGE_IS_PFNZERO: u64 = general::PAGE_IS_PFNZERO as u64;
pub(crate) const PAGE_IS_HUGE: u64 = general::PAGE_IS_HUGE as u64;

const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);
// Compared with the value of a C compiler, so that a wrong structure does not compile.
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610);

/// The `MADV_*` calls this crate makes, `MADV_COLLAPSE` among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Madvise {
    Known(Advice),
    Collapse,
}

fn last_errno() -> Errno {
    // The cast cannot fail: the value was just taken from errno, which is small and positive.
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// One step of `PAGEMAP_SCAN`: fills `out` with pages of `range` that have any of `any_of`, reporting the
/// categories in `report`. Returns how many entries were filled and where the walk stopped.
pub(crate) fn pagemap_scan(
    pagemap: &File,
    range: HvaRange,
    any_of: u64,
    report: u64,
    out: &mut [page_region],
) -> Result<(usize, Hva), Errno> {
    let mut arg = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        start: range.start().get(),
        end: range.end().get(),
        vec: out.as_mut_ptr() as u64,
        vec_len: out.len() as u64,
        category_anyof_mask: any_of,
        return_mask: report,
        flags: 0,
        walk_end: 0,
        max_pages: 0,
        category_inverted: 0,
        category_mask: 0,
    };
    // SAFETY: `arg` is the kernel's `struct pm_scan_arg`, and `vec`/`vec_len`
    // describe `out`, which is exclusively borrowed; without PM_SCAN_WP_MATCHING the walk changes nothing.
    let filled = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN.into(), &raw mut arg) };
    if filled < 0 {
        return Err(last_errno());
    }
    Ok((filled as usize, Hva::new(arg.walk_end)))
}

/// Whether each page of `range` is resident: mapped, or in the page cache or swap cache behind it.
pub(crate) fn mincore(range: HvaRange, out: &mut [u8]) -> Result<(), Errno> {
    assert!(out.len() as u64 >= range.page_count(), "one byte a page");
    // SAFETY: `out` has a byte for each page of the range, and mincore only reads page tables.
    let done = unsafe { libc::mincore(range.start().as_ptr(), range.len() as usize, out.as_mut_ptr()) };
    if done < 0 { Err(last_errno()) } else { Ok(()) }
}

/// madvise on memory of a region.
///
/// # Safety
/// `range` lies in a mapping that belongs to the caller, and there is no Rust reference into what the advice discards or
/// replaces.
pub(crate) unsafe fn madvise(range: HvaRange, advice: Madvise) -> Result<(), Errno> {
    match advice {
        Madvise::Known(advice) => {
            // SAFETY: the caller vouches for the range.
            unsafe { rustix::mm::madvise(range.start().as_ptr(), range.len() as usize, advice) }
        }
        Madvise::Collapse => {
            // SAFETY: the caller vouches for the range.
            let done =
                unsafe { libc::madvise(range.start().as_ptr(), range.len() as usize, libc::MADV_COLLAPSE) };
            if done < 0 { Err(last_errno()) } else { Ok(()) }
        }
    }
}

/// How much of a mapping may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    ReadOnly,
    ReadWrite,
}

/// mprotect on memory of a region.
///
/// # Safety
/// `range` lies in a mapping that belongs to the caller, and there is no Rust reference into it.
pub(crate) unsafe fn mprotect(range: HvaRange, protection: Protection) -> Result<(), Errno> {
    let flags = match protection {
        Protection::ReadOnly => MprotectFlags::READ,
        Protection::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
    };
    // SAFETY: the caller vouches for the range.
    unsafe { rustix::mm::mprotect(range.start().as_ptr(), range.len() as usize, flags) }
}

/// Reserves `len` bytes of address space that hold nothing, at an address of the kernel's choosing.
pub(crate) fn reserve(len: usize) -> Result<HvaRange, Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: without MAP_FIXED a new mapping cannot touch an existing one.
    let at = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), flags) }?;
    HvaRange::with_len(Hva::of(at), len as u64).ok_or(Errno::NOMEM)
}

/// The memory behind a mapping.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'fd> {
    Anonymous,
    Hugetlb2m,
    Shared(BorrowedFd<'fd>),
}

/// Puts a readable and writable mapping over all of `range`.
///
/// # Safety
/// `range` is a reservation that belongs to the caller: what is mapped there now is replaced.
pub(crate) unsafe fn map_over(range: HvaRange, content: Content<'_>) -> Result<(), Errno> {
    let (at, len) = (range.start().as_ptr(), range.len() as usize);
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // NORESERVE: a laboratory overcommits on purpose; hugetlb must not, or the first touch is a SIGBUS.
    let private = MapFlags::PRIVATE | MapFlags::FIXED;
    let mapped = match content {
        // SAFETY: the caller owns what MAP_FIXED replaces.
        Content::Anonymous => unsafe {
            rustix::mm::mmap_anonymous(at, len, access, private | MapFlags::NORESERVE)
        },
        // SAFETY: the caller owns what MAP_FIXED replaces.
        Content::Hugetlb2m => unsafe {
            rustix::mm::mmap_anonymous(at, len, access, private | MapFlags::HUGETLB | MapFlags::HUGE_2MB)
        },
        // SAFETY: the caller owns what MAP_FIXED replaces.
        Content::Shared(fd) => unsafe {
            let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
            rustix::mm::mmap(at, len, access, flags, fd, 0)
        },
    };
    mapped.map(|_| ())
}

/// munmap.
///
/// # Safety
/// `range` belongs to the caller and is not used again.
pub(crate) unsafe fn munmap(range: HvaRange) -> Result<(), Errno> {
    if range.is_empty() {
        return Ok(());
    }
    // SAFETY: the caller vouches for the range.
    unsafe { rustix::mm::munmap(range.start().as_ptr(), range.len() as usize) }
}

/// Copies memory of this process by the system call for another process: a missing page is an error, or waits for
/// userfaultfd, and this thread takes no fault. Returns the bytes copied, less than all if a later page cannot be read.
pub(crate) fn copy_out(from: HvaRange, to: &mut [u8]) -> Result<usize, Errno> {
    assert_eq!(from.len(), to.len() as u64, "a byte for each byte");
    let remote = libc::iovec { iov_base: from.start().as_ptr(), iov_len: to.len() };
    let local = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    let this = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: `local` is exclusively borrowed; the remote side is only read, by the kernel, which checks it.
    let copied = unsafe { libc::process_vm_readv(this, &raw const local, 1, &raw const remote, 1, 0) };
    if copied < 0 { Err(last_errno()) } else { Ok(copied as usize) }
}

/// The state of the old place after pages have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OldPlace {
    /// It stays mapped, empty: no other thread's mmap can land there meanwhile.
    KeepEmpty,
    /// It is unmapped.
    Unmap,
}

/// Moves the page tables of `from` over the mapping at `to`, which has the same length.
///
/// # Safety
/// Both ranges belong to the caller, and there is no Rust reference into either.
pub(crate) unsafe fn move_pages(from: HvaRange, to: HvaRange, old: OldPlace) -> Result<(), Errno> {
    assert_eq!(from.len(), to.len(), "pages move to a place of the same length");
    let flags = match old {
        OldPlace::KeepEmpty => MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP,
        OldPlace::Unmap => MremapFlags::MAYMOVE,
    };
    let len = from.len() as usize;
    // SAFETY: the caller vouches for both ranges.
    let moved =
        unsafe { rustix::mm::mremap_fixed(from.start().as_ptr(), len, len, flags, to.start().as_ptr()) };
    moved.map(|_| ())
}

/// A file in memory, sealed to `len` bytes: no holder of the file can cut memory that is mapped from it.
pub(crate) fn memfd(name: &CStr, len: u64) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, len)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Punches a hole of `len` bytes at `offset`: the pages leave the page cache and swap.
pub(crate) fn punch_hole(fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Errno> {
    rustix::fs::fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// Locks the pages of a range in memory.
pub(crate) fn lock(range: HvaRange) -> Result<(), Errno> {
    // SAFETY: locking changes neither content nor access; the kernel checks the addresses.
    unsafe { rustix::mm::mlock(range.start().as_ptr(), range.len() as usize) }
}

/// The other half of [`lock`].
pub(crate) fn unlock(range: HvaRange) {
    // SAFETY: as for `lock`. That it fails can only mean that nothing is locked there.
    let _ = unsafe { rustix::mm::munlock(range.start().as_ptr(), range.len() as usize) };
}

/// swapon with an explicit priority, discards off.
pub(crate) fn swapon(device: &CStr, priority: i16) -> Result<(), Errno> {
    const SWAP_FLAG_PREFER: i32 = 0x8000;
    const SWAP_FLAG_PRIO_MASK: i32 = 0x7fff;
    let flags = SWAP_FLAG_PREFER | (i32::from(priority.max(0)) & SWAP_FLAG_PRIO_MASK);
    // SAFETY: the path is NUL-terminated and only read.
    let done = unsafe { libc::swapon(device.as_ptr(), flags) };
    if done < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Reads the word at `at`.
///
/// # Safety
/// The eight bytes at `at` are mapped and `at` is a multiple of 8.
pub(crate) unsafe fn read_word(at: Hva) -> u64 {
    debug_assert!(at.is_aligned(8));
    // SAFETY: mapped and aligned, says the caller; volatile because the guest may write meanwhile.
    unsafe { at.as_ptr::<u64>().read_volatile() }
}

/// Writes the word at `at`.
///
/// # Safety
/// The eight bytes at `at` are mapped writable and `at` is a multiple of 8.
pub(crate) unsafe fn write_word(at: Hva, value: u64) {
    debug_assert!(at.is_aligned(8));
    // SAFETY: mapped and aligned, says the caller; volatile because the guest may read meanwhile.
    unsafe { at.as_ptr::<u64>().write_volatile(value) }
}

/// Makes the kernel map the page that holds the byte at `at`, for writing if `write`. The byte stays as it is.
///
/// # Safety
/// The byte is mapped readable, and writable if `write`; all accesses to it are atomic or volatile.
pub(crate) unsafe fn touch_byte(at: Hva, write: bool) {
    if !write {
        // SAFETY: mapped, says the caller; volatile because the guest may write meanwhile.
        unsafe { at.as_ptr::<u8>().read_volatile() };
        return;
    }
    // SAFETY: mapped and shared with accesses that tolerate this one, says the caller; a byte needs no alignment.
    let byte = unsafe { AtomicU8::from_ptr(at.as_ptr()) };
    // A guest may write at the same time, so reading a value and writing it back would lose the guest's write. A
    // compare-exchange takes the page for writing even where it compares unequal, and leaves the value as it is either
    // way. (`fetch_or(0)` would not do: it compiles to a load.)
    let _ = byte.compare_exchange(0, 0, Ordering::Relaxed, Ordering::Relaxed);
}
