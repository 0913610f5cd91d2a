//! Memory of one node that is contiguous in guest physical memory.
//!
//! ```text
//!   reserve addresses ── advise, bind to the node ── populate ── frame numbers ── sorted ── a run?
//!                                                      ▲                                   │ no
//!                                                      └────── more, while there is room ──┤
//!                                                                                          │ yes
//!   look again: nothing moved ── lock ── give back the surplus ── table: page -> address ◄─┘
//! ```

use std::error::Error;
use std::ffi::c_void;
use std::fmt;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use guest_abi::layout::PAGE_SIZE;
use guest_abi::link::Pages;
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MlockFlags, ProtFlags};

use super::node::{Node, Reserve};
use super::pagemap;
use super::runs::{self, Page};

/// Bytes of a huge page.
pub const HUGE: u64 = 2 << 20;
/// Pages in a huge page.
const PER_HUGE: usize = (HUGE / PAGE_SIZE) as usize;
const PAGE: usize = PAGE_SIZE as usize;

/// A range of this process's addresses that begins at a multiple of 2 MiB.
struct Mapping {
    base: *mut u8,
    len: usize,
    /// The range with what had to be reserved around it.
    reserved: (*mut c_void, usize),
}

impl Mapping {
    fn reserve(len: usize) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let whole = len + HUGE as usize;
        // SAFETY: a fresh mapping wherever the kernel likes; nothing refers to it.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), whole, rights, flags) }.context("mmap")?;
        let base = start.cast::<u8>();
        Ok(Self { base: base.wrapping_add(base.align_offset(HUGE as usize)), len, reserved: (start, whole) })
    }

    fn advise(&self, start: usize, len: usize, advice: Advice) -> rustix::io::Result<()> {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "advice beyond the mapping");
        // SAFETY: inside the mapping, whose content is accessed by raw pointers only.
        unsafe { mm::madvise(self.base.wrapping_add(start).cast(), len, advice) }
    }

    fn refuse_huge_pages(&self) -> Result<()> {
        match self.advise(0, self.len, Advice::LinuxNoHugepage) {
            // A kernel without huge pages has no such advice, and no need of it.
            Err(Errno::INVAL) => Ok(()),
            result => result.context("MADV_NOHUGEPAGE"),
        }
    }

    fn bind(&self, node: Node) -> Result<()> {
        let word = u64::BITS;
        let mut mask = vec![0_u64; (node.id / word) as usize + 1];
        mask[(node.id / word) as usize] = 1 << (node.id % word);
        // The kernel reads one bit less than it is told.
        let bits = mask.len() * word as usize + 1;
        // SAFETY: the mapping is this value's; the mask is read within its bounds.
        let result = unsafe {
            libc::syscall(libc::SYS_mbind, self.base, self.len, libc::MPOL_BIND, mask.as_ptr(), bits, 0)
        };
        if result == 0 { Ok(()) } else { Err(last_errno()).context("mbind") }
    }

    /// Gives up the addresses from `len` on.
    fn shrink(&mut self, len: usize) {
        let end = self.reserved.0 as usize + self.reserved.1;
        let cut = self.base.wrapping_add(len);
        assert!(len <= self.len && len.is_multiple_of(PAGE), "a mapping does not grow");
        // SAFETY: the mapping is this value's, and nothing refers to its end.
        if unsafe { mm::munmap(cut.cast(), end - cut as usize) }.is_ok() {
            self.reserved.1 -= end - cut as usize;
            self.len = len;
        }
    }

    /// Has the kernel allocate `[start, start + len)`.
    fn populate(&self, start: usize, len: usize) -> Result<()> {
        match self.advise(start, len, Advice::LinuxPopulateWrite) {
            // Before Linux 5.14.
            Err(Errno::INVAL) => {
                for offset in (start..start + len).step_by(PAGE) {
                    // SAFETY: inside the mapping, by `advise`'s check; writable; no reference to it exists yet.
                    unsafe { self.base.wrapping_add(offset).write_volatile(0) };
                }
                Ok(())
            }
            result => result.context("MADV_POPULATE_WRITE"),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no user of it is left: each borrowed the value.
        let _ = unsafe { mm::munmap(self.reserved.0, self.reserved.1) };
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

/// The pages did not come in one piece, or the kernel moved some of them: a second attempt may succeed.
#[derive(Debug)]
struct Scattered(String);

impl fmt::Display for Scattered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Scattered {}

/// Memory that is contiguous in guest physical memory, locked, and reached by a table.
pub struct Contiguous {
    mapping: Mapping,
    /// Where in the mapping each page lies, in pages.
    table: Vec<u32>,
    first_pfn: u64,
}

// SAFETY: the memory is only handed out as raw pointers; which thread does so makes no difference.
unsafe impl Send for Contiguous {}
// SAFETY: as for `Send`; nothing here changes after it was made.
unsafe impl Sync for Contiguous {}

impl Contiguous {
    /// Takes `bytes`, a multiple of 2 MiB, from `node`.
    ///
    /// # Errors
    /// The node does not have that much in one piece, or the kernel refuses something.
    pub fn take(node: Node, bytes: u64, pages: Pages) -> Result<Self> {
        let _lowered = Reserve::lower();
        node.tidy();
        match Self::attempt(node, bytes, pages) {
            Err(error) if error.is::<Scattered>() => {
                node.tidy();
                Self::attempt(node, bytes, pages)
            }
            result => result,
        }
    }

    fn attempt(node: Node, bytes: u64, pages: Pages) -> Result<Self> {
        let too_large = |bytes: u64| format!("{bytes} bytes are more than this agent can map");
        let wanted = u32::try_from(bytes / PAGE_SIZE).ok().with_context(|| too_large(bytes))? as usize;
        let room = node.room()? / HUGE * HUGE;
        ensure!(
            bytes <= room,
            "node {} has {room} bytes to give, and {bytes} are wanted in one piece: give the node more memory",
            node.id
        );
        let mut mapping = Mapping::reserve(usize::try_from(room).ok().with_context(|| too_large(room))?)?;
        match pages {
            Pages::Small => mapping.refuse_huge_pages()?,
            Pages::Huge => mapping.advise(0, mapping.len, Advice::LinuxHugepage).context("MADV_HUGEPAGE")?,
        }
        // A fork would make every page one to be copied at the next write: to another place.
        mapping.advise(0, mapping.len, Advice::LinuxDontFork).context("MADV_DONTFORK")?;
        mapping.bind(node)?;

        let mut gathered: Vec<Page> = Vec::new();
        let (mut step, mut growth) = (wanted, PER_HUGE);
        let run = loop {
            gather(&mapping, &mut gathered, step)?;
            let longest = match runs::choose(&gathered, wanted, PER_HUGE as u64) {
                Ok(run) => break run,
                Err(longest) => longest as u64,
            };
            let left = ((node.room()? / HUGE) as usize * PER_HUGE).min(mapping.len / PAGE - gathered.len());
            step = growth.min(left);
            growth *= 2;
            if step == 0 {
                bail!(Scattered(format!(
                    "node {} does not have {bytes} contiguous bytes: {} could be had, {} of them in one piece; give \
                     the node more memory",
                    node.id,
                    gathered.len() as u64 * PAGE_SIZE,
                    longest * PAGE_SIZE
                )));
            }
        };
        let first_pfn = gathered[run.start].pfn;
        let table = gathered[run].iter().map(|page| page.index).collect();
        mapping.shrink(gathered.len() * PAGE);
        let contiguous = Self { mapping, table, first_pfn };
        contiguous.settle()?;
        Ok(contiguous)
    }

    /// Gives back what the table does not name, and keeps the rest in place.
    fn settle(&self) -> Result<()> {
        let mut kept = self.table.clone();
        kept.sort_unstable();
        for gap in runs::gaps((self.mapping.len / PAGE) as u32, &kept) {
            let (start, len) = (gap.start as usize * PAGE, gap.len() * PAGE);
            self.mapping.advise(start, len, Advice::LinuxDontNeed).context("MADV_DONTNEED")?;
        }
        // What is huge stays so, and khugepaged keeps away.
        self.mapping.refuse_huge_pages()?;
        // SAFETY: the mapping is this value's; on fault, so that what was given back stays away.
        unsafe { mm::mlock_with(self.mapping.base.cast(), self.mapping.len, MlockFlags::ONFAULT) }
            .context("mlock2")?;
        match self.moved()? {
            0 => Ok(()),
            moved => {
                bail!(Scattered(format!("the kernel moved {moved} pages while they were being gathered")))
            }
        }
    }

    /// Where it begins in guest physical memory.
    pub fn gpa(&self) -> u64 {
        self.first_pfn * PAGE_SIZE
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.table.len() as u64 * PAGE_SIZE
    }

    /// The address of a page.
    pub fn page(&self, index: u64) -> Option<*mut u8> {
        let &at = self.table.get(usize::try_from(index).ok()?)?;
        Some(self.mapping.base.wrapping_add(at as usize * PAGE))
    }

    /// The page at an address.
    pub fn page_at(&self, address: usize) -> Option<u64> {
        let offset = address.checked_sub(self.mapping.base as usize)?;
        let index = self.table.iter().position(|&at| at as usize == offset / PAGE)?;
        Some(index as u64)
    }

    /// Its address, if its pages lie one after the other there too.
    pub fn linear(&self) -> Option<*mut u8> {
        self.table.is_sorted_by(|page, next| page + 1 == *next).then(|| self.page(0))?
    }

    /// How many of its pages are not where they were.
    pub fn moved(&self) -> Result<u64> {
        let pages = self.mapping.len / PAGE;
        let mut expected = vec![None; pages];
        for (pfn, &at) in (self.first_pfn..).zip(&self.table) {
            expected[at as usize] = Some(pfn);
        }
        let mut moved = 0;
        pagemap::frames(self.mapping.base, pages, |index, pfn| {
            moved += u64::from(expected[index].is_some() && expected[index] != pfn);
        })?;
        Ok(moved)
    }

    /// How many of its bytes huge pages map.
    pub fn huge_bytes(&self) -> Result<u64> {
        let start = self.mapping.base as u64;
        Ok(pagemap::huge_bytes(start..start + self.mapping.len as u64)?.min(self.bytes()))
    }
}

/// Has the kernel allocate the next `count` pages of the mapping, and files them by frame number.
fn gather(mapping: &Mapping, gathered: &mut Vec<Page>, count: usize) -> Result<()> {
    let start = gathered.len() * PAGE;
    mapping.populate(start, count * PAGE)?;
    let first = gathered.len();
    let mut absent = 0;
    pagemap::frames(mapping.base.wrapping_add(start), count, |index, pfn| match pfn {
        Some(pfn) => gathered.push(Page { pfn, index: (first + index) as u32 }),
        None => absent += 1,
    })?;
    ensure!(absent == 0, "{absent} pages are not there although they were just allocated");
    // Mostly sorted, which this sort makes use of.
    gathered.sort();
    Ok(())
}
