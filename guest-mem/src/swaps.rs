//! The swap areas of this host.

use std::fs;
use std::path::PathBuf;

/// One swap area, a line of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapArea {
    /// The device or file.
    pub path: PathBuf,
    /// Bytes it can hold.
    pub size: u64,
    /// Bytes it holds.
    pub used: u64,
    /// The kernel fills the highest first.
    pub priority: i32,
}

/// The swap areas in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwapInfo {
    /// In the order the kernel lists them.
    pub areas: Vec<SwapArea>,
}

impl SwapInfo {
    /// Reads `/proc/swaps`. A kernel without swap has no areas.
    pub fn read() -> Self {
        fs::read_to_string("/proc/swaps").map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// Parses the text of `/proc/swaps`; lines it cannot read are left out.
    pub fn parse(text: &str) -> Self {
        Self { areas: text.lines().skip(1).filter_map(parse_line).collect() }
    }

    /// Bytes all areas can still take.
    pub fn free(&self) -> u64 {
        self.areas.iter().map(|area| area.size.saturating_sub(area.used)).sum()
    }
    /// The area on this device.
    pub fn find(&self, path: &std::path::Path) -> Option<&SwapArea> {
        self.areas.iter().find(|area| area.path == path)
    }
    /// A priority above all in use, so that pages go there first; at least 100.
    pub fn priority_above(&self) -> i16 {
        let highest = self.areas.iter().map(|area| area.priority).max().unwrap_or(0);
        i16::try_from(highest.saturating_add(1)).unwrap_or(i16::MAX).max(100)
    }
}

/// `/dev/zram0 partition 1048572 0 100`; blanks in a file name are written `\040`.
fn parse_line(line: &str) -> Option<SwapArea> {
    let mut words = line.split_whitespace();
    let path = words.next()?.replace("\\040", " ").into();
    let _kind = words.next()?;
    let mut kib = || words.next()?.parse::<u64>().ok()?.checked_mul(1 << 10);
    let (size, used) = (kib()?, kib()?);
    Some(SwapArea { path, size, used, priority: words.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWAPS: &str = "\
Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority
/dev/vda2                               partition\t2097148\t\t1024\t\t-2
/dev/zram1                              partition\t1048572\t\t0\t\t32767
/swap\\040file                          file\t\t4\t\t0\t\t5
garbage
";

    #[test]
    fn areas_are_read_in_bytes() {
        let swaps = SwapInfo::parse(SWAPS);
        assert_eq!(swaps.areas.len(), 3);
        assert_eq!((swaps.areas[0].used, swaps.areas[0].priority), (1 << 20, -2));
        assert_eq!(swaps.find("/swap file".as_ref()).map(|area| area.size), Some(4096));
        assert_eq!(swaps.free(), (2_097_148 - 1024 + 1_048_572 + 4) << 10);
    }

    #[test]
    fn a_new_area_comes_first_as_far_as_numbers_go() {
        assert_eq!(SwapInfo::default().priority_above(), 100);
        assert_eq!(SwapInfo::parse(SWAPS).priority_above(), i16::MAX);
        assert_eq!(SwapInfo::parse("Filename\n/dev/a partition 4 0 200\n").priority_above(), 201);
    }
}
