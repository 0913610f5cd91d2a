//! The resident code of this program, which counts beside the guest's memory.

use std::ffi::c_void;
use std::ptr;

use super::root::Root;

/// Unmaps the code of this program and its libraries. Most of what has run was needed for the start only: the command line,
/// the scenario, the facts of the host, a kernel's decompression. Code that is needed again is mapped again from the page
/// cache, by one fault for each 64 KiB.
///
/// The kernel counts file pages as resident while they are mapped, and maps sixteen for each that is touched.
pub fn unmap_code() {
    let maps = Root::default().text("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(code_of_a_file) {
        let address = ptr::with_exposed_provenance_mut::<c_void>(start);
        // SAFETY: a private mapping of a file that was never writable has no modified pages: the next access maps the same
        // content, also of code that is running.
        unsafe { libc::madvise(address, end - start, libc::MADV_DONTNEED) };
    }
}

/// The addresses of a line of `/proc/self/maps` that is executable code of a file.
fn code_of_a_file(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_whitespace();
    let (range, access) = (fields.next()?, fields.next()?);
    let path = fields.nth(3)?;
    if access != "r-xp" || !path.starts_with('/') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_unmapped() {
        let code = "55d0a000-55d0c000 r-xp 00002000 fe:00 123                        /usr/bin/program";
        assert_eq!(code_of_a_file(code), Some((0x55d0_a000, 0x55d0_c000)));
        for other in [
            "55d0a000-55d0c000 r--p 00002000 fe:00 123                        /usr/bin/program",
            "55d0a000-55d0c000 rwxp 00002000 fe:00 123                        /usr/bin/program",
            "7ffd1000-7ffd3000 r-xp 00000000 00:00 0                          [vdso]",
            "7f001000-7f003000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code_of_a_file(other), None, "{other}");
        }
    }

    #[test]
    fn code_runs_after_it() {
        unmap_code();
        assert_eq!("42".parse(), Ok(42));
    }
}
