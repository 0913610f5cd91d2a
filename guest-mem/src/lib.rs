//! Guest memory, and the kernel's announcements about it.
//!
//! Addresses and half-open ranges of three address spaces, memslots as plain data, regions of memory and
//! their backings, the state of each page (pagemap), and the operations that take pages away. Knows nothing
//! of KVM, of range policies, or of userfaultfd.
//!
//! ```text
//!   Backing ─> Region ─┬─> PageScanner ─> PageRun, PageCounts      the state of the pages
//!                      ├─> Planner     ─> Planned                  the announcements of an operation
//!                      ├─> perform                                 the operation
//!                      └─> toggle_protection, unmap_shared         drop translations, keep the pages
//!   swap_on_device, MemoryCgroup                                   swap space, and memory pressure
//!   waits::Thread, Patience, Overdue                               waits for our own threads, with a deadline
//! ```
//!
//! All of it works without root where the kernel lets it: folio orders below the PMD, zram devices and (mostly)
//! cgroups are the exceptions, and say so.

mod address;
mod announce;
mod backing;
mod causes;
mod cgroup;
mod cgroup_mounts;
mod content;
mod data_finder;
mod earned;
mod entries;
mod entry;
mod folios;
mod hugetlb;
mod kpageflags;
mod left_behind;
mod limit;
mod lru;
mod mapping;
mod page;
mod pagemap;
mod plan;
mod planned;
mod range;
mod reclaim;
mod region;
pub mod remedy;
mod scan_error;
mod seam;
mod seaming;
mod slots;
mod state;
mod swaps;
mod switches;
mod sys;
mod thp;
mod victim;
pub mod waits;
mod zap;
mod zram;

pub use address::{Address, Gfn, Gpa, Hva, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE};
pub use backing::{Backing, UnknownBacking};
pub use causes::with_causes;
pub use cgroup::{CgroupError, CgroupPlace, MemoryCgroup, Squeezed};
pub use cgroup_mounts::Version as CgroupVersion;
pub use content::ContentError;
pub use earned::{Earned, NamedFolios};
pub use folios::LargeFolio;
pub use hugetlb::{HugetlbLimit, Step as HugetlbStep};
pub use left_behind::hear_what_is_left_behind;
pub use lru::drain_lru;
pub use mapping::Mapping;
pub use page::{Page, is_zero_page};
pub use pagemap::{PageScanner, ScanMethod};
pub use plan::Planner;
pub use planned::Planned;
pub use range::{AddressRange, Chunks, GfnRange, GpaRange, HvaRange, RangeError};
pub use reclaim::{DuringCall, Operation, ReclaimError, Remains, perform};
pub use region::{Memory, Region, RegionError};
pub use scan_error::ScanError;
pub use seam::SeamError;
pub use slots::{MOST_SLOTS, Memslot, SlotError, SlotId, SlotTable, SlotTableBuilder};
pub use state::{PageCounts, PageRun, PageState};
pub use swaps::{SwapArea, SwapInfo};
pub use switches::{Knob, Remedy, Setting, Unavailable, Value};
pub use thp::{HostThp, HugetlbPool, ShmemSwitch, Switch};
pub use victim::{MapLevel, Order, Victim};
pub use zap::{ZapError, toggle_protection, unmap_shared};
pub use zram::{ZramError, check_swap_size, swap_on_device};

#[cfg(test)]
harness::watch_libtest!();
