//! Pushing another process's memory out: `process_madvise`.

use std::os::fd::{AsFd, AsRawFd};

use guest_mem::{Hva, HvaRange, PageCounts, PageScanner, SwapInfo};
use rustix::io::Errno;
use serde::Serialize;

use super::holder::Holder;
use super::memory::{Memory, needs_swap};
use host::tracefs::last_errno;
use program::exit::{Class, Classified};
use program::units;

/// Why memory could not be pushed out.
#[derive(Debug, thiserror::Error)]
pub enum PageoutError {
    /// We may not.
    #[error(
        "the memory of another process is paged out with CAP_SYS_NICE and the right to look at it: run as root"
    )]
    Refused,
    /// There is nowhere to page out to. The call would do no good, and take huge pages apart.
    #[error("--pageout: nothing can leave: {0}")]
    NoSwap(&'static str),
    /// The kernel has no such call.
    #[error("this kernel has no process_madvise: Linux 5.10 brought it")]
    NoCall,
    /// Something else.
    #[error("process_madvise(MADV_PAGEOUT) of {range}")]
    Call {
        /// What was left.
        range: HvaRange,
        /// What the kernel said.
        source: Errno,
    },
}

impl Classified for PageoutError {
    fn class(&self) -> Class {
        match self {
            Self::Refused | Self::NoCall | Self::NoSwap(_) => Class::Host,
            Self::Call { source, .. } => Class::of_refusal(*source),
        }
    }
}

/// What a page-out did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    start: u64,
    end: u64,
    /// Bytes that were mapped before; null if page tables cannot be read.
    mapped_before: Option<u64>,
    /// And after it.
    mapped_after: Option<u64>,
}

impl Pushed {
    /// What left, in a sentence; and why not all did, as far as that is known.
    pub fn told(&self) -> String {
        let asked = self.end - self.start;
        let (Some(before), Some(after)) = (self.mapped_before, self.mapped_after) else {
            return format!("--pageout: asked for {}; what left is not known", units::bytes(asked));
        };
        let left = units::bytes(before.saturating_sub(after));
        let mut text = format!("--pageout: {left} left of {}", units::bytes(asked));
        if before < asked {
            text += &format!(", of which {} were there", units::bytes(before));
        }
        if after > 0 {
            text +=
                "; the kernel passes over what is in use, locked or shared, and what swap has no room for";
        }
        text
    }
}

/// Pages out a range of the memory that `holder` has mapped as `of`, and looks what left.
///
/// # Errors
/// [`PageoutError`].
pub fn page_out(holder: &Holder, of: &Memory, range: HvaRange) -> Result<Pushed, PageoutError> {
    if let Some(why) = no_swap(&SwapInfo::read()).filter(|_| needs_swap(of)) {
        return Err(PageoutError::NoSwap(why));
    }
    let mut scanner = PageScanner::of_process(holder.pid()).ok();
    let mut mapped = || {
        let mut runs = Vec::new();
        scanner.as_mut()?.scan(range, &mut runs).ok()?;
        Some(PageCounts::of(&runs).present * guest_mem::PAGE_SIZE)
    };
    let mapped_before = mapped();
    advise(holder.pidfd(), range)?;
    let (start, end) = (range.start().get(), range.end().get());
    Ok(Pushed { start, end, mapped_before, mapped_after: mapped() })
}

/// Why no memory that needs swap can leave, if none can.
fn no_swap(swap: &SwapInfo) -> Option<&'static str> {
    match (swap.areas.is_empty(), swap.free()) {
        (true, _) => Some("this host has no swap; `swapon` a device or a file first"),
        (false, 0) => Some("this host's swap is full; `swapon` another device or file first"),
        (false, _) => None,
    }
}

/// Advises the kernel to page out a range of the process that `pidfd` stands for. It passes over what is in use, locked or
/// shared, and does not say so.
fn advise(pidfd: impl AsFd, range: HvaRange) -> Result<(), PageoutError> {
    let mut rest = range;
    while !rest.is_empty() {
        let vector = libc::iovec { iov_base: rest.start().as_ptr(), iov_len: rest.len() as usize };
        // SAFETY: one element, which the kernel reads; the addresses in it are another process's and not touched here.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                pidfd.as_fd().as_raw_fd(),
                &raw const vector,
                1,
                libc::MADV_PAGEOUT,
                0,
            )
        };
        let advised = match (u64::try_from(advised), last_errno()) {
            (Ok(0), _) => return Ok(()),
            (Ok(advised), _) => advised,
            (Err(_), Errno::INTR) => continue,
            (Err(_), Errno::PERM | Errno::ACCESS) => return Err(PageoutError::Refused),
            (Err(_), Errno::NOSYS) => return Err(PageoutError::NoCall),
            (Err(_), source) => return Err(PageoutError::Call { range: rest, source }),
        };
        let done = rest.start().get() + advised.min(rest.len());
        rest = HvaRange::new(Hva::new(done), rest.end()).unwrap_or(HvaRange::empty(rest.end()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_room_in_swap_nothing_can_leave() {
        let swap = |used: u64| {
            let head = "Filename\tType\tSize\tUsed\tPriority\n";
            SwapInfo::parse(&format!("{head}/dev/zram0 partition 1024 {used} 100\n"))
        };
        assert!(no_swap(&SwapInfo::default()).unwrap().contains("has no swap"));
        assert!(no_swap(&swap(1024)).unwrap().contains("is full"));
        assert_eq!(no_swap(&swap(1000)), None);
    }

    #[test]
    fn what_left_is_told_and_what_was_never_there() {
        let of = |before, after| {
            Pushed { start: 0, end: 8 << 20, mapped_before: before, mapped_after: after }.told()
        };
        assert_eq!(of(Some(8 << 20), Some(0)), "--pageout: 8 MiB left of 8 MiB");
        assert_eq!(of(Some(4 << 20), Some(0)), "--pageout: 4 MiB left of 8 MiB, of which 4 MiB were there");
        assert!(of(Some(8 << 20), Some(1 << 20)).starts_with("--pageout: 7 MiB left of 8 MiB; the kernel"));
        assert!(of(None, None).contains("is not known"));
    }
}
