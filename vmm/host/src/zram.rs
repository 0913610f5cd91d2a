//! Making and removing zram devices. The removal works from another process, after the end of the one that used the device.
//! [`guest_mem::swap_on_device`] makes a device swap.

use std::ffi::CString;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use super::retry::{is_busy, retry};
use super::root::Root;
use super::swaps::parse_swaps;
use super::switch_file::write_switch;

const HOT_ADD: &str = "/sys/class/zram-control/hot_add";
const HOT_REMOVE: &str = "/sys/class/zram-control/hot_remove";

/// udev and blkid open a device for a moment after each change.
const BUSY_TRIES: u32 = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// A device that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NewZram {
    pub(crate) number: u32,
    pub(crate) diskseq: Option<u64>,
}

/// Makes a device, by reading `hot_add`.
pub(crate) fn hot_add() -> io::Result<NewZram> {
    let text = std::fs::read_to_string(HOT_ADD)?;
    let number = text.trim().parse().map_err(|_| {
        io::Error::new(ErrorKind::InvalidData, format!("hot_add answered '{}', not a number", text.trim()))
    })?;
    Ok(NewZram { number, diskseq: diskseq_of(number) })
}

/// The kernel's serial number of the disk.
pub(crate) fn diskseq_of(number: u32) -> Option<u64> {
    Root::default().number(&format!("/sys/block/zram{number}/diskseq"))
}

/// Removes device `number`, if it exists and has this serial number.
pub(crate) fn remove(number: u32, diskseq: Option<u64>) -> io::Result<()> {
    let directory = PathBuf::from(format!("/sys/block/zram{number}"));
    if !directory.exists() || (diskseq.is_some() && diskseq != diskseq_of(number)) {
        return Ok(());
    }
    if is_swapped_to(number) {
        swapoff(&format!("/dev/zram{number}"))?;
    }
    retry(BUSY_TRIES, BUSY_PAUSE, is_busy, || write_switch(&directory.join("reset"), "1"))?;
    retry(BUSY_TRIES, BUSY_PAUSE, is_busy, || write_switch(HOT_REMOVE.as_ref(), &number.to_string()))
}

/// Whether the kernel swaps to the device: swapoff needs a capability that making the device does not. The device is compared
/// by name, because another mount namespace has other paths.
fn is_swapped_to(number: u32) -> bool {
    let name = format!("zram{number}");
    let swaps = Root::default().text("/proc/swaps").unwrap_or_default();
    parse_swaps(&swaps).iter().any(|device| device.path.rsplit('/').next() == Some(&name))
}

/// Reads all swapped pages back and stops swapping to the device; no error if it is not in use.
fn swapoff(device: &str) -> io::Result<()> {
    let path = CString::new(device)?;
    // SAFETY: the path is NUL-terminated and only read.
    if unsafe { libc::swapoff(path.as_ptr()) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // It is not a swap device any more, or has no device node.
        Some(libc::EINVAL | libc::ENOENT) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs: Zram"]
    fn a_device_is_removed_only_if_it_is_the_same_one() {
        let made = hot_add().unwrap();
        let path = PathBuf::from(format!("/sys/block/zram{}", made.number));
        if made.diskseq.is_some() {
            remove(made.number, made.diskseq.map(|seq| seq + 1)).unwrap();
            assert!(path.exists(), "another disk of the same number is not removed");
        }
        remove(made.number, made.diskseq).unwrap();
        assert!(!path.exists());
        remove(made.number, made.diskseq).unwrap();
    }
}
