//! A zram swap device for one test.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use guest_mem::{SwapInfo, swap_on_device, with_causes};

/// A zram device that this process swaps to, removed when dropped.
#[derive(Debug)]
pub struct ZramSwap {
    number: u32,
}

/// A swap device for one test.
pub fn swap() -> ZramSwap {
    ZramSwap::create(512 << 20, None).unwrap()
}

impl ZramSwap {
    /// Makes a device of `bytes`, used before any other swap area. `algorithm` is the kernel's name of a compressor, its
    /// default if `None`.
    ///
    /// # Errors
    /// The attempt that the kernel refused, and its answer.
    pub fn create(bytes: u64, algorithm: Option<&str>) -> Result<Self, String> {
        let made = fs::read_to_string("/sys/class/zram-control/hot_add")
            .map_err(|error| format!("/sys/class/zram-control/hot_add: {error}"))?;
        let device = Self { number: made.trim().parse().unwrap() };
        if let Some(algorithm) = algorithm {
            let path = device.sysfs("comp_algorithm");
            fs::write(&path, algorithm)
                .map_err(|error| format!("{algorithm} to {}: {error}", path.display()))?;
        }
        swap_on_device(device.number, bytes).map_err(|error| with_causes(&error))?;
        Ok(device)
    }

    /// The device node.
    pub fn path(&self) -> PathBuf {
        format!("/dev/zram{}", self.number).into()
    }

    /// Bytes of the pages stored, before compression, by the device's own count.
    pub fn stored_bytes(&self) -> u64 {
        let stat = fs::read_to_string(self.sysfs("mm_stat")).unwrap();
        stat.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn sysfs(&self, file: &str) -> PathBuf {
        format!("/sys/block/zram{}/{file}", self.number).into()
    }
}

impl Drop for ZramSwap {
    fn drop(&mut self) {
        let node = std::ffi::CString::new(format!("/dev/zram{}", self.number)).unwrap();
        if SwapInfo::read().find(&self.path()).is_some() {
            // SAFETY: the path is NUL-terminated and only read.
            let done = unsafe { libc::swapoff(node.as_ptr()) };
            assert_eq!(done, 0, "swapoff {node:?}: {}", io::Error::last_os_error());
        }
        // blkid and udev open a device that has just changed.
        while_busy(|| fs::write(self.sysfs("reset"), "1"));
        while_busy(|| fs::write("/sys/class/zram-control/hot_remove", self.number.to_string()));
    }
}

fn while_busy(attempt: impl Fn() -> io::Result<()>) {
    for _ in 0..100 {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done.unwrap(),
        }
    }
    attempt().unwrap();
}
