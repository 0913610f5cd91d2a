//! Swap areas and zram devices of this host.

use std::collections::BTreeSet;

/// What runs change of a host's swap, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swaps {
    /// What is swapped to.
    pub areas: BTreeSet<String>,
    /// The zram devices.
    pub devices: BTreeSet<String>,
}

impl Swaps {
    /// As they are now.
    pub fn now() -> Self {
        let areas = std::fs::read_to_string("/proc/swaps").expect("every kernel with swap has it");
        let areas = areas.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        let devices = std::fs::read_dir("/sys/block").expect("sysfs");
        let devices = devices.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Self {
            areas: areas.map(str::to_owned).collect(),
            devices: devices.filter(|name| name.starts_with("zram")).collect(),
        }
    }

    /// Waits until they are as they were.
    #[track_caller]
    pub fn restored(&self) {
        harness::until(&format!("the host's swap is {self:?} again"), || Self::now() == *self);
    }
}
