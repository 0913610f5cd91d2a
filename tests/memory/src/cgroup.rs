//! A memory cgroup for one test.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use guest_mem::{CgroupPlace, MemoryCgroup, with_causes};

/// A memory cgroup that this process is in, removed when dropped.
#[derive(Debug)]
pub struct OwnCgroup {
    /// `Some` until the drop.
    group: Option<MemoryCgroup>,
    path: PathBuf,
}

impl OwnCgroup {
    /// Makes a group of this name and moves the process into it.
    ///
    /// # Errors
    /// There is no controller, or no right to it.
    pub fn enter(name: &str) -> Result<Self, String> {
        let place = CgroupPlace::find(name).map_err(|error| with_causes(&error))?;
        let path = place.path().to_owned();
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut own = Self { group: None, path };
        own.group = Some(MemoryCgroup::enter(place).map_err(|error| with_causes(&error))?);
        Ok(own)
    }
}

impl Deref for OwnCgroup {
    type Target = MemoryCgroup;

    fn deref(&self) -> &MemoryCgroup {
        self.group.as_ref().expect("until the drop")
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        drop(self.group.take());
        // A thread that is just exiting keeps the group busy for a moment.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
