//! Swap on a zram device: its size, its header, swapon. Adding and removing the device is its owner's part.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;

use crate::address::PAGE_SIZE;
use crate::swaps::SwapInfo;
use crate::sys;

/// A zram device could not be made a swap device.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ZramError {
    #[error("a zram swap device of {0} bytes: it takes a multiple of 4096, from 64 KiB to 16 TiB")]
    Size(u64),
    #[error("{attempt} {}{}", path.display(), remedy(source))]
    File { attempt: String, path: PathBuf, source: io::Error },
    #[error(
        "a zram device of {bytes} bytes takes a table of {} bytes at once, and the kernel has no room for it: ask for less",
        table_bytes(*bytes)
    )]
    Table { bytes: u64, source: io::Error },
    #[error("{0} did not appear within two seconds: is devtmpfs mounted at /dev?")]
    NoNode(PathBuf),
    #[error("swapon {path}{}", swapon_remedy(*source))]
    SwapOn { path: PathBuf, source: Errno },
}

/// The remedy for an error of a file of the driver.
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

/// Bytes of the kernel's table for the pages of a device: 16 for each, stored or not.
fn table_bytes(size: u64) -> u64 {
    size / PAGE_SIZE * 16
}

/// Makes zram device `number` swap of `size_bytes`, used before any other area. The caller has added the device, and takes it
/// away again: nothing is undone here, whether or not it works.
///
/// # Errors
/// No right, no memory, or a size that is none.
pub fn swap_on_device(number: u32, size_bytes: u64) -> Result<(), ZramError> {
    check_swap_size(size_bytes)?;
    let disksize = PathBuf::from(format!("/sys/block/zram{number}/disksize"));
    fs::write(&disksize, size_bytes.to_string()).map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::NOMEM) => ZramError::Table { bytes: size_bytes, source },
        _ => ZramError::File { attempt: format!("writing {size_bytes} to"), path: disksize.clone(), source },
    })?;
    let node = PathBuf::from(format!("/dev/zram{number}"));
    wait_for_node(&node)?;
    write_header(&node, size_bytes)?;
    let node_c = CString::new(format!("/dev/zram{number}")).expect("digits hold no NUL");
    sys::swapon(&node_c, SwapInfo::read().priority_above())
        .map_err(|source| ZramError::SwapOn { path: node, source })
}

/// Refuses sizes that no swap device has: not whole pages, under 64 KiB or over 16 TiB.
pub fn check_swap_size(size_bytes: u64) -> Result<(), ZramError> {
    if !size_bytes.is_multiple_of(PAGE_SIZE) || !((64 << 10)..=(16 << 40)).contains(&size_bytes) {
        return Err(ZramError::Size(size_bytes));
    }
    Ok(())
}

/// devtmpfs makes the node; a moment may pass, or udev may still hold it.
fn wait_for_node(node: &Path) -> Result<(), ZramError> {
    for _ in 0..200 {
        if fs::metadata(node).is_ok_and(|meta| meta.file_type().is_block_device()) {
            return Ok(());
        }
        sleep(Duration::from_millis(10));
    }
    Err(ZramError::NoNode(node.to_owned()))
}

fn write_header(path: &Path, size: u64) -> Result<(), ZramError> {
    let failed = |source| ZramError::File {
        attempt: "writing a swap header to".to_owned(),
        path: path.to_owned(),
        source,
    };
    let node: File = OpenOptions::new().write(true).open(path).map_err(failed)?;
    node.write_all_at(&swap_header(size), 0).map_err(failed)?;
    node.sync_all().map_err(failed)
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
    fn impossible_sizes_are_refused() {
        for size in [0, 4096, 65_537, 1 << 63, u64::MAX] {
            assert!(matches!(check_swap_size(size), Err(ZramError::Size(_))), "{size}");
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
}
