//! Paging out another process's memory: `process_madvise`.

use guest_mem::{HvaRange, PageCounts, PageScanner, SwapInfo};
use rustix::io::Errno;
use serde::Serialize;

use super::holder::Holder;
use super::memory::{Memory, needs_swap};
use program::exit::{Class, Classified};
use program::units;

/// Memory could not be paged out.
#[derive(Debug, thiserror::Error)]
pub enum PageoutError {
    #[error(
        "the memory of another process is paged out with CAP_SYS_NICE and the right to look at it: run as root"
    )]
    Refused,
    /// There is no room in swap. The call would split huge pages for nothing.
    #[error("--pageout: nothing can leave: {0}")]
    NoSwap(&'static str),
    #[error("this kernel has no process_madvise: Linux 5.10 brought it")]
    NoCall,
    #[error("process_madvise(MADV_PAGEOUT) of {range}")]
    Call {
        /// The rest of the range.
        range: HvaRange,
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

/// The result of a page-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PagedOut {
    start: u64,
    end: u64,
    /// Mapped bytes before it; null if page tables cannot be read.
    mapped_before: Option<u64>,
    /// Mapped bytes after it.
    mapped_after: Option<u64>,
}

impl PagedOut {
    /// A sentence: the bytes that left, and if not all did, the possible reasons.
    pub fn sentence(&self) -> String {
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

/// Pages out a range of the memory that `holder` has mapped as `of`, and reads what left.
pub fn page_out(holder: &Holder, of: &Memory, range: HvaRange) -> Result<PagedOut, PageoutError> {
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
    host::page_out_process(holder.pidfd(), range).map_err(|(range, errno)| match errno {
        Errno::PERM | Errno::ACCESS => PageoutError::Refused,
        Errno::NOSYS => PageoutError::NoCall,
        source => PageoutError::Call { range, source },
    })?;
    let (start, end) = (range.start().get(), range.end().get());
    Ok(PagedOut { start, end, mapped_before, mapped_after: mapped() })
}

/// The reason why no memory can leave to swap; `None` if it can.
fn no_swap(swap: &SwapInfo) -> Option<&'static str> {
    match (swap.areas.is_empty(), swap.free()) {
        (true, _) => Some("this host has no swap; `swapon` a device or a file first"),
        (false, 0) => Some("this host's swap is full; `swapon` another device or file first"),
        (false, _) => None,
    }
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
    fn the_sentence_has_what_left_and_what_was_not_mapped() {
        let of = |before, after| {
            PagedOut { start: 0, end: 8 << 20, mapped_before: before, mapped_after: after }.sentence()
        };
        assert_eq!(of(Some(8 << 20), Some(0)), "--pageout: 8 MiB left of 8 MiB");
        assert_eq!(of(Some(4 << 20), Some(0)), "--pageout: 4 MiB left of 8 MiB, of which 4 MiB were there");
        assert!(of(Some(8 << 20), Some(1 << 20)).starts_with("--pageout: 7 MiB left of 8 MiB; the kernel"));
        assert!(of(None, None).contains("is not known"));
    }
}
