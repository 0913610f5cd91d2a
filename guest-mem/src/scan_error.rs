//! The error of reading page state.

use rustix::io::Errno;

use crate::range::{HvaRange, RangeError};
use crate::remedy::{self, Asked};

/// Page state could not be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ScanError {
    #[error("opening /proc/self/pagemap{}", remedy::after_io(Asked::Procfs, .0))]
    Open(#[source] std::io::Error),
    #[error("PAGEMAP_SCAN is not offered by this kernel: it needs Linux 6.7; read entries instead")]
    NoPagemapScan(#[source] Errno),
    #[error("scanning {0}: both ends must be multiples of 4096")]
    Unaligned(HvaRange),
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error("reading page state of {range} by {call}{}", remedy::after(Asked::Procfs, *source))]
    Call { call: &'static str, range: HvaRange, source: Errno },
    #[error("reading {file} for {range}{}", remedy::after_io(Asked::Procfs, source))]
    Read { file: &'static str, range: HvaRange, source: std::io::Error },
}
