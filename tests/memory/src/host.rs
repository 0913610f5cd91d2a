//! The host for one test at a time, and its switches.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{Backing, HostThp, PMD_SIZE};

/// One test at a time, in this process and in any other: they share the swap areas, the cgroup, the host's
/// switches and the LRU lists.
pub struct Alone {
    _process: MutexGuard<'static, ()>,
    _host: File,
}

/// Waits for the turn of this test.
pub fn alone() -> Alone {
    static ONE: Mutex<()> = Mutex::new(());
    let process = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let host = File::open(std::env::temp_dir()).unwrap();
    rustix::fs::flock(&host, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Alone { _process: process, _host: host }
}

const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// Bytes of the largest region of a test.
const LARGEST: u64 = 16 * PMD_SIZE;

/// Sets the switches that a backing needs, for one test; or returns why they cannot be set.
pub fn switches(backing: Backing) -> Result<Vec<SysfsSwitch>, String> {
    let missing = || backing.unavailable(LARGEST, &HostThp::read());
    let Some(why) = missing() else { return Ok(Vec::new()) };
    let settings = why.remedy.settings().iter();
    let switches = settings
        .map(|setting| SysfsSwitch::set(&setting.knob.path(), &setting.text()))
        .collect::<Result<Vec<_>, _>>()?;
    match missing() {
        Some(why) => Err(why.to_string()),
        None => Ok(switches),
    }
}

/// Keeps khugepaged away for one test: it collapses memory between a plan and its operation.
pub fn without_khugepaged() -> SysfsSwitch {
    let switch = SysfsSwitch::set(&format!("{THP}/khugepaged/scan_sleep_millisecs"), "600000").unwrap();
    // Writing the switch wakes it for a last round.
    std::thread::sleep(std::time::Duration::from_millis(50));
    switch
}

/// A switch of the host, set for one test and put back.
pub struct SysfsSwitch {
    path: String,
    before: String,
}

impl SysfsSwitch {
    /// Sets a switch, or returns why not.
    pub fn set(path: &str, value: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        // Most switches show all choices with the current one in brackets; plain numbers show themselves.
        let before = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
        let before = before.unwrap_or(text.trim()).to_owned();
        std::fs::write(path, value).map_err(|error| format!("writing {path}: {error}; run as root"))?;
        Ok(Self { path: path.to_owned(), before })
    }
}

impl Drop for SysfsSwitch {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.before).unwrap();
    }
}
