//! The error of reading page state.

use rustix::io::Errno;

use crate::range::{HvaRange, RangeError};
use crate::remedy::{self, Asked};

/// Page state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// `/proc/self/pagemap` does not open.
    #[error("opening /proc/self/pagemap{}", remedy::after_io(Asked::Procfs, .0))]
    Open(#[source] std::io::Error),
    /// The kernel is too old for the method that was asked for.
    #[error("PAGEMAP_SCAN is not offered by this kernel: it needs Linux 6.7; read entries instead")]
    NoPagemapScan(#[source] Errno),
    /// The range is not made of whole pages.
    #[error("scanning {0}: both ends must be multiples of 4096")]
    Unaligned(HvaRange),
    /// The range does not fit the region it was said to lie in.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A call failed.
    #[error("reading page state of {range} by {call}{}", remedy::after(Asked::Procfs, *source))]
    Call {
        /// The system call.
        call: &'static str,
        /// The addresses that were read.
        range: HvaRange,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A file of procfs could not be read.
    #[error("reading {file} for {range}{}", remedy::after_io(Asked::Procfs, source))]
    Read {
        /// The file.
        file: &'static str,
        /// The addresses that were read.
        range: HvaRange,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}
