//! The swap devices in use.

use serde::Serialize;

/// A line of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwapDevice {
    /// The device or file.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// How much of it is used.
    pub used_bytes: u64,
    /// The higher, the earlier it is filled.
    pub priority: i32,
}

impl SwapDevice {
    /// Whether it is compressed memory and not a disk.
    pub fn is_zram(&self) -> bool {
        self.path.rsplit('/').next().is_some_and(|name| name.starts_with("zram"))
    }
}

/// Reads `/proc/swaps`. The kernel writes blanks in a path as `\040`.
pub(crate) fn parse_swaps(text: &str) -> Vec<SwapDevice> {
    text.lines().skip(1).filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<SwapDevice> {
    let mut words = line.split_whitespace();
    let path = words.next()?.replace("\\040", " ");
    let _kind = words.next()?;
    let mut kib = || words.next()?.parse::<u64>().ok()?.checked_mul(1024);
    let (bytes, used_bytes) = (kib()?, kib()?);
    let priority = words.next()?.parse().ok()?;
    Some(SwapDevice { path, bytes, used_bytes, priority })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
        /dev/zram0                              partition\t262140\t\t1024\t\t100\n\
        /swap\\040file                           file\t\t8388604\t\t0\t\t-2\n";

    #[test]
    fn devices_and_files_are_read() {
        let swaps = parse_swaps(TWO);
        assert_eq!(swaps.len(), 2);
        assert_eq!((swaps[0].bytes, swaps[0].used_bytes), (262_140 << 10, 1 << 20));
        assert!(swaps[0].is_zram());
        assert_eq!((swaps[1].path.as_str(), swaps[1].priority), ("/swap file", -2));
        assert!(!swaps[1].is_zram());
    }

    #[test]
    fn a_header_alone_is_no_device() {
        assert_eq!(parse_swaps("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"), []);
        assert_eq!(parse_swaps(""), []);
        assert_eq!(parse_swaps("Filename\n/dev/sda2 partition many 0 -2\n"), [], "no number, no device");
    }
}
