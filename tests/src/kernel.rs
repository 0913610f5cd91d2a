//! What the kernel announces to a KVM of this process, by the tap and by another observer.

use std::fs;

use guest_mem::{HvaRange, PAGE_SIZE, Region};
use host::Tracefs;
use tap::{Collector, Event, Interest, Tap, TapError, Via, What};

/// A tracefs instance of a test's own, removed when dropped.
pub struct Instance {
    tracefs: Tracefs,
    name: String,
}

impl Instance {
    /// Makes one.
    pub fn make(purpose: &str) -> Result<Self, String> {
        let tracefs = Tracefs::open().map_err(|error| error.to_string())?;
        let name = format!("zapscope-test-{}-{purpose}", std::process::id());
        tracefs.make_instance(&name).map_err(|error| error.to_string())?;
        Ok(Self { tracefs, name })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn file(&self, file: &str) -> String {
        format!("instances/{}/{file}", self.name)
    }

    /// Writes to one of its files.
    pub fn write(&self, file: &str, text: &str) {
        self.tracefs.write(&self.file(file), text).expect("an instance of our own takes it");
    }

    /// Reads one of its files.
    pub fn read(&self, file: &str) -> String {
        let directory = self.tracefs.directory(&format!("instances/{}", self.name)).expect("it is ours");
        // In one piece of any size, which a trace may have.
        let stream = directory.stream(file).expect("a file of an instance");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&stream));
        fs::read_to_string(path).expect("a trace is text")
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = self.tracefs.remove_instance(&self.name) {
            eprintln!("{error}: {}", error.source);
        }
    }
}

/// Listens by perf for ranges in some addresses.
pub fn listen(watched: &[HvaRange]) -> Result<Collector, TapError> {
    Tap::open(&Via::Perf, Interest { causes: true, ..Interest::default() }, watched, 1 << 18)
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
