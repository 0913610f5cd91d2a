//! A zram swap device of one's own: made, used and taken away again.
//!
//! ```text
//!   hot_add ─> algorithm, disksize ─> swap header ─> swapon ─> (in use)
//!      <───────── hot_remove <── reset <── swapoff <──────────────┘     in that order, on every way out
//! ```

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;

use crate::address::PAGE_SIZE;
use crate::causes::with_causes;
use crate::left_behind::tell;
use crate::swaps::SwapInfo;
use crate::sys;

const CONTROL: &str = "/sys/class/zram-control";

/// Why a zram device could not be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum ZramError {
    /// The driver is not there.
    #[error("no {CONTROL}/hot_add: `modprobe zram`, or run a kernel built with CONFIG_ZRAM")]
    NoDriver(#[source] io::Error),
    /// The size is no size for a swap device.
    #[error("a zram swap device of {0} bytes: it takes a multiple of 4096, from 64 KiB to 16 TiB")]
    Size(u64),
    /// The kernel has no such compressor.
    #[error("zram{number} does not compress by `{algorithm}`: it offers {offered}")]
    Algorithm {
        /// Which device.
        number: u32,
        /// What was asked for.
        algorithm: String,
        /// What there is.
        offered: String,
    },
    /// A file of the device could not be read or written.
    #[error("{attempt} {}{}", path.display(), remedy(source))]
    File {
        /// What was tried: `writing 1 to`, `reading`.
        attempt: String,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel has no memory for the table of a device so large.
    #[error(
        "a zram device of {bytes} bytes takes a table of {} bytes at once, and the kernel has no room for it: ask for less",
        table_bytes(*bytes)
    )]
    Table {
        /// The device's size.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The device node never came.
    #[error("{0} did not appear within two seconds: is devtmpfs mounted at /dev?")]
    NoNode(PathBuf),
    /// swapon failed.
    #[error("swapon {path}{}", swapon_remedy(*source))]
    SwapOn {
        /// Which device.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// swapoff failed, so the device stays.
    #[error("swapoff {path}: free memory for what it holds, then `swapoff {path}` again")]
    SwapOff {
        /// Which device.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// What to do about a file of the driver.
fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS | Errno::PERM) => ": zram devices are for root, outside of user namespaces",
        Some(Errno::ROFS) => ": sysfs is mounted read-only here; run outside the container",
        Some(Errno::BUSY) => ": somebody else uses the device or the driver; try again",
        Some(Errno::NOMEM) => ": the kernel has no memory for it",
        _ => "",
    }
}

fn swapon_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            ": it takes CAP_SYS_ADMIN in the initial user namespace, or this kernel has as many swap areas as it can"
        }
        Errno::NOSYS => ": this kernel was built without CONFIG_SWAP",
        Errno::NOMEM => ": the kernel has no memory for its map; ask for less",
        _ => "",
    }
}

/// Bytes that the kernel keeps for the pages of a device, filled or not: 16 for each.
fn table_bytes(size: u64) -> u64 {
    size / PAGE_SIZE * 16
}

/// A zram device used for swap, taken away when dropped.
#[derive(Debug)]
pub struct ZramSwap {
    device: Device,
    size: u64,
    priority: i16,
}

/// A zram device that `hot_add` gave us. Dropping it undoes whatever was done to it.
#[derive(Debug)]
struct Device {
    number: u32,
    gone: bool,
}

/// What a zram device holds: the first columns of its `mm_stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmStat {
    /// Bytes of pages stored, uncompressed.
    pub original: u64,
    /// Bytes they take compressed.
    pub compressed: u64,
    /// Bytes of memory the device uses, with everything around them.
    pub used: u64,
    /// The most it ever used.
    pub used_max: u64,
    /// Pages filled with one word, which take no room.
    pub same_pages: u64,
    /// Pages that do not compress.
    pub huge_pages: u64,
}

impl MmStat {
    fn parse(text: &str) -> Option<Self> {
        let columns: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        Some(Self {
            original: *columns.first()?,
            compressed: *columns.get(1)?,
            used: *columns.get(2)?,
            used_max: *columns.get(4)?,
            same_pages: *columns.get(5)?,
            // Absent on old kernels.
            huge_pages: columns.get(7).copied().unwrap_or(0),
        })
    }
}

impl ZramSwap {
    /// Makes a zram device of `size_bytes` and swaps to it before any other area. `algorithm` is the kernel's
    /// name of a compressor, its default if `None`. Nothing stays behind if a step fails.
    ///
    /// # Errors
    /// No driver, no right, an unknown compressor, or a size that is none.
    pub fn create(size_bytes: u64, algorithm: Option<&str>) -> Result<Self, ZramError> {
        check_swap_size(size_bytes)?;
        let device = Device::hot_add()?;
        let priority = device.make_swap(size_bytes, algorithm)?;
        Ok(Self { device, size: size_bytes, priority })
    }

    /// The device's number: what a guardian needs for [`undo_by_number`].
    pub fn number(&self) -> u32 {
        self.device.number
    }
    /// The device node.
    pub fn path(&self) -> PathBuf {
        self.device.node()
    }
    /// Bytes of the device, header included.
    pub fn size(&self) -> u64 {
        self.size
    }
    /// The priority it swaps with.
    pub fn priority(&self) -> i16 {
        self.priority
    }

    /// What the device holds now.
    ///
    /// # Errors
    /// The kernel's file cannot be read.
    pub fn mm_stat(&self) -> Result<MmStat, ZramError> {
        let path = self.device.sysfs("mm_stat");
        let text = read(&path)?;
        MmStat::parse(&text).ok_or_else(|| ZramError::File {
            attempt: "making sense of".to_owned(),
            path,
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    /// Takes the device away: swaps everything in, resets it, removes it.
    ///
    /// # Errors
    /// The first step that failed; the steps before it are done.
    pub fn remove(mut self) -> Result<(), ZramError> {
        self.device.undo()
    }
}

/// Makes a zram device that somebody else added, and will take away again, swap of `size_bytes`, used before any
/// other. Nothing is undone here, whether or not it works.
///
/// # Errors
/// As [`ZramSwap::create`].
pub fn swap_on_device(number: u32, size_bytes: u64, algorithm: Option<&str>) -> Result<(), ZramError> {
    check_swap_size(size_bytes)?;
    // Not dropped: dropping a device takes it away.
    let device = std::mem::ManuallyDrop::new(Device { number, gone: false });
    device.make_swap(size_bytes, algorithm).map(drop)
}

/// Refuses what is no size of a swap device: not whole pages, under 64 KiB or over 16 TiB.
///
/// # Errors
/// [`ZramError::Size`].
pub fn check_swap_size(size_bytes: u64) -> Result<(), ZramError> {
    if !size_bytes.is_multiple_of(PAGE_SIZE) || !((64 << 10)..=(16 << 40)).contains(&size_bytes) {
        return Err(ZramError::Size(size_bytes));
    }
    Ok(())
}

/// Takes away zram device `number`, whose owner died: swapoff if it is in use, reset, hot_remove. Only for a
/// number that [`ZramSwap::number`] gave: the device is destroyed whatever it holds.
///
/// # Errors
/// The first step that failed. A device that is already gone is no error.
pub fn undo_by_number(number: u32) -> Result<(), ZramError> {
    Device { number, gone: false }.undo()
}

impl Device {
    /// Makes the device swap of `size_bytes`, used before any other. Returns its priority.
    fn make_swap(&self, size_bytes: u64, algorithm: Option<&str>) -> Result<i16, ZramError> {
        if let Some(algorithm) = algorithm {
            self.choose_algorithm(algorithm)?;
        }
        self.write("disksize", &size_bytes.to_string()).map_err(|error| match error {
            ZramError::File { source, .. } if Errno::from_io_error(&source) == Some(Errno::NOMEM) => {
                ZramError::Table { bytes: size_bytes, source }
            }
            error => error,
        })?;
        self.wait_for_node()?;
        self.write_header(size_bytes)?;
        let priority = SwapInfo::read().priority_above();
        sys::swapon(&self.node_c(), priority)
            .map_err(|source| ZramError::SwapOn { path: self.node(), source })?;
        Ok(priority)
    }

    fn hot_add() -> Result<Self, ZramError> {
        // Reading the file is what makes the device.
        let path = Path::new(CONTROL).join("hot_add");
        let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ZramError::NoDriver(source),
            _ => ZramError::File { attempt: "reading".to_owned(), path: path.clone(), source },
        })?;
        let number = text.trim().parse().map_err(|error| ZramError::File {
            attempt: "making sense of".to_owned(),
            path,
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
        Ok(Self { number, gone: false })
    }

    fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.number))
    }
    fn node_c(&self) -> CString {
        CString::new(format!("/dev/zram{}", self.number)).expect("digits hold no NUL")
    }
    fn sysfs(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/zram{}/{file}", self.number))
    }

    fn write(&self, file: &str, value: &str) -> Result<(), ZramError> {
        write(&self.sysfs(file), value)
    }

    fn choose_algorithm(&self, algorithm: &str) -> Result<(), ZramError> {
        let offered = read(&self.sysfs("comp_algorithm"))?;
        let known = offered.split_whitespace().any(|word| word.trim_matches(['[', ']']) == algorithm);
        if !known {
            let (number, offered) = (self.number, offered.trim().to_owned());
            return Err(ZramError::Algorithm { number, algorithm: algorithm.to_owned(), offered });
        }
        self.write("comp_algorithm", algorithm)
    }

    /// devtmpfs makes the node; a moment may pass, or udev may still hold it.
    fn wait_for_node(&self) -> Result<(), ZramError> {
        let node = self.node();
        for _ in 0..200 {
            if fs::metadata(&node).is_ok_and(|meta| meta.file_type().is_block_device()) {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        Err(ZramError::NoNode(node))
    }

    fn write_header(&self, size: u64) -> Result<(), ZramError> {
        let path = self.node();
        let failed = |source| ZramError::File {
            attempt: "writing a swap header to".to_owned(),
            path: path.clone(),
            source,
        };
        let node: File = OpenOptions::new().write(true).open(&path).map_err(failed)?;
        node.write_all_at(&swap_header(size), 0).map_err(failed)?;
        node.sync_all().map_err(failed)
    }

    /// swapoff, reset, hot_remove; each where there is still something to undo.
    fn undo(&mut self) -> Result<(), ZramError> {
        if self.gone || !self.sysfs("").exists() {
            self.gone = true;
            return Ok(());
        }
        if SwapInfo::read().find(&self.node()).is_some() {
            retry(|| sys::swapoff(&self.node_c()), |errno| matches!(*errno, Errno::BUSY | Errno::INTR))
                .map_err(|source| ZramError::SwapOff { path: self.node(), source })?;
        }
        // Somebody else (blkid, udev) may have the node open for a moment: EBUSY until it closes it.
        retry(|| self.write("reset", "1"), is_busy)?;
        let control = Path::new(CONTROL).join("hot_remove");
        retry(|| write(&control, &self.number.to_string()), is_busy)?;
        self.gone = true;
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            // A destructor can only say it; `remove` is for callers who want to know.
            tell(&format!("zram{} stays behind: {}", self.number, with_causes(&error)));
        }
    }
}

fn is_busy(error: &ZramError) -> bool {
    matches!(error, ZramError::File { source, .. } if source.raw_os_error() == Some(libc::EBUSY))
}

/// Tries for about a second as long as the error is passing.
fn retry<E>(mut attempt: impl FnMut() -> Result<(), E>, passing: impl Fn(&E) -> bool) -> Result<(), E> {
    for _ in 0..50 {
        match attempt() {
            Err(error) if passing(&error) => sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
    attempt()
}

fn read(path: &Path) -> Result<String, ZramError> {
    fs::read_to_string(path).map_err(|source| ZramError::File {
        attempt: "reading".to_owned(),
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, value: &str) -> Result<(), ZramError> {
    fs::write(path, value).map_err(|source| ZramError::File {
        attempt: format!("writing {value} to"),
        path: path.to_owned(),
        source,
    })
}

/// `union swap_header` of `<linux/swap.h>`, version 1, one page.
fn swap_header(size: u64) -> [u8; PAGE_SIZE as usize] {
    const VERSION_AT: usize = 1024;
    const LAST_PAGE_AT: usize = 1028;
    const MAGIC: &[u8; 10] = b"SWAPSPACE2";
    let mut header = [0; PAGE_SIZE as usize];
    // The size is at most 16 TiB, so that the last page's number fits its 32 bits.
    let last_page = (size / PAGE_SIZE - 1) as u32;
    header[VERSION_AT..VERSION_AT + 4].copy_from_slice(&1u32.to_ne_bytes());
    header[LAST_PAGE_AT..LAST_PAGE_AT + 4].copy_from_slice(&last_page.to_ne_bytes());
    header[PAGE_SIZE as usize - MAGIC.len()..].copy_from_slice(MAGIC);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_swap_header_is_what_mkswap_writes() {
        let header = swap_header(64 << 20);
        assert_eq!(header[1024..1032], [1, 0, 0, 0, 0xff, 0x3f, 0, 0]);
        assert_eq!(&header[4086..], b"SWAPSPACE2");
        assert_eq!(header[..1024], [0; 1024]);
        let largest = swap_header(16 << 40);
        assert_eq!(largest[1028..1032], [0xff; 4]);
    }

    #[test]
    fn impossible_sizes_are_refused_before_anything_is_made() {
        for size in [0, 4096, 65_537, 1 << 63, u64::MAX] {
            assert!(matches!(ZramSwap::create(size, None), Err(ZramError::Size(_))), "{size}");
        }
    }

    #[test]
    fn one_errno_has_one_sentence() {
        let said = |errno: i32| {
            let source = io::Error::from_raw_os_error(errno);
            ZramError::File { attempt: "reading".to_owned(), path: "/x".into(), source }.to_string()
        };
        for (errno, words) in [
            (libc::EACCES, "for root"),
            (libc::EPERM, "for root"),
            (libc::EROFS, "outside the container"),
            (libc::EBUSY, "try again"),
            (libc::ENOMEM, "no memory"),
        ] {
            assert!(said(errno).contains(words), "{}", said(errno));
            assert_eq!(said(errno).contains("root"), words == "for root", "{}", said(errno));
        }
        assert_eq!(said(libc::EIO), "reading /x", "nothing is known");
        let table = ZramError::Table { bytes: 16 << 40, source: io::Error::from_raw_os_error(libc::ENOMEM) };
        assert!(table.to_string().contains("68719476736 bytes at once"), "{table}");
        let swapon = |source| ZramError::SwapOn { path: "/dev/zram0".into(), source }.to_string();
        for (errno, words) in [
            (Errno::PERM, "CAP_SYS_ADMIN"),
            (Errno::ACCESS, "CAP_SYS_ADMIN"),
            (Errno::NOSYS, "CONFIG_SWAP"),
            (Errno::NOMEM, "ask for less"),
        ] {
            assert!(swapon(errno).contains(words), "{}", swapon(errno));
        }
        assert_eq!(swapon(Errno::INVAL), "swapon /dev/zram0", "nothing is known");
    }

    #[test]
    fn mm_stat_is_read_by_column() {
        let stat = MmStat::parse(
            "   4096       58    12288        0    12288        3        0        7        0\n",
        );
        let expected = MmStat {
            original: 4096,
            compressed: 58,
            used: 12288,
            used_max: 12288,
            same_pages: 3,
            huge_pages: 7,
        };
        assert_eq!(stat, Some(expected));
        assert_eq!(MmStat::parse("1 2"), None);
    }

    #[test]
    fn retries_end_and_only_passing_errors_are_retried() {
        let mut calls = 0;
        let lasting = retry(
            || {
                calls += 1;
                Err::<(), u8>(2)
            },
            |error| *error == 1,
        );
        assert_eq!((lasting, calls), (Err(2), 1));
        let mut calls = 0;
        let passing = retry(
            || {
                calls += 1;
                if calls < 3 { Err(1) } else { Ok(()) }
            },
            |error| *error == 1,
        );
        assert_eq!((passing, calls), (Ok(()), 3));
    }
}
