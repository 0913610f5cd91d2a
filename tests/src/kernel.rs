//! What the kernel announces to a KVM of this process, by the tap and by another observer.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use guest_mem::{HvaRange, PAGE_SIZE, Region};
use host::Tracefs;
use tap::{Collector, Event, Interest, Tap, TapError, Via, What};

/// A tracefs instance of a test, removed when dropped.
pub struct Instance {
    /// Keeps a tracefs that is mounted for this alone.
    _tracefs: Tracefs,
    path: PathBuf,
}

impl Instance {
    /// Makes one.
    pub fn make(purpose: &str) -> Result<Self, String> {
        let tracefs = Tracefs::open().map_err(|error| error.to_string())?;
        let root = format!("/proc/self/fd/{}", tracefs.as_fd().as_raw_fd());
        let path = Path::new(&root).join(format!("instances/zapscope-test-{}-{purpose}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { _tracefs: tracefs, path })
    }

    /// Writes to one of its files.
    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.path.join(file), text).expect("an instance of the test can be written");
    }

    /// Reads one of its files.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.path.join(file)).expect("a trace is text")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

/// Listens by perf for ranges in some addresses.
pub fn listen(watched: &[HvaRange]) -> Result<Collector, TapError> {
    Tap::open(Via::Perf, Interest { causes: true, ..Interest::default() }, watched, 1 << 18)
}

/// The ranges that were announced since the last time, oldest first.
pub fn ranges(tap: &Collector) -> Vec<(Event, HvaRange)> {
    let mut events = Vec::new();
    let seen = tap.take(&mut events).expect("the rings are sound");
    assert_eq!(seen.lost, 0, "events were lost");
    let range = |event: Event| match event.what {
        What::Range(range) => Some((event, range)),
        _ => None,
    };
    events.into_iter().filter_map(range).collect()
}

/// A range of a region as its first page, and how many.
pub fn in_pages(region: &Region, range: HvaRange) -> (u64, u64) {
    (region.offset_of(range.start()).expect("inside") / PAGE_SIZE, range.page_count())
}

/// The kernel's version, as its first two numbers.
pub fn version() -> (u32, u32) {
    let release = rustix::system::uname();
    let text = release.release().to_string_lossy();
    let mut numbers = text.split(|other: char| !other.is_ascii_digit()).map(|number| number.parse().ok());
    let mut next = || numbers.next().flatten().expect("a release begins with two numbers");
    (next(), next())
}
