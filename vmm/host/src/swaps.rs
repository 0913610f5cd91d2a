//! The swap devices in use, as they stand in a record.

use guest_mem::{SwapArea, SwapInfo};
use serde::Serialize;

/// A line of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SwapDevice {
    /// The device or file.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Devices of higher priority are filled first.
    pub priority: i32,
}

impl SwapDevice {
    /// Whether it is compressed memory and not a disk.
    pub fn is_zram(&self) -> bool {
        self.path.rsplit('/').next().is_some_and(|name| name.starts_with("zram"))
    }
}

impl From<SwapArea> for SwapDevice {
    fn from(area: SwapArea) -> Self {
        let SwapArea { path, size, used, priority } = area;
        Self { path: path.to_string_lossy().into_owned(), bytes: size, used_bytes: used, priority }
    }
}

/// The devices in the text of `/proc/swaps`.
pub(crate) fn parse_swaps(text: &str) -> Vec<SwapDevice> {
    SwapInfo::parse(text).areas.into_iter().map(SwapDevice::from).collect()
}
