//! A bare guest in a file, and back: whole, or page by page as the guest asks for them.
//!
//! ```text
//!   take:     fill ── vCPUs at rest, behind their last doorbell ── their state, all memory ──> FILE
//!
//!   FILE      header │ vCPUs' states │ pages that are not zero … │ index: a bit a page, a checksum a stored page
//!
//!   restore:  FILE ── header, states, index ── empty memory ── userfaultfd over all of it ── vCPUs ── KVM_RUN
//!                └──────────────── a page at its first fault: ImageStore ── checksum ── UFFDIO_COPY ────┘
//! ```
//!
//! Everything is registered, the guest's code and page tables too: its first instruction is a fault. A page that does not
//! hold its checksum never gets into the guest: the vCPU that touches it waits, and the guest is stopped
//! ([`stop::Stopper`]).

pub mod file;
pub mod header;
pub mod index;
pub mod record;
pub mod restore;
pub mod stop;
pub mod work;
pub mod write;

use std::io;
use std::path::PathBuf;

use guest_mem::{ContentError, ScanError};
use swap::{AttachError, BufferError, HandOverError, HandlerError, StoreError};

use crate::VmError;
use crate::arch::state::StateError;
use crate::arch::{OtherCpu, state_bytes};
use guest::GuestError;
use program::exit::{Class, Classified};
use program::input::InputError;
use program::whole_file::WholeFileError;

/// A snapshot could not be taken or restored.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum SnapshotError {
    #[error("{attempt} the snapshot {}", path.display())]
    Io {
        attempt: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no snapshot was made")]
    Written(#[from] WholeFileError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("the snapshot {}: {why}", path.display())]
    Bad { path: PathBuf, why: BadContent },
    #[error("the snapshot {}: the page at guest physical address {gpa:#x} is damaged: its checksum is {found:#010x}, not \
             {expected:#010x}; make the snapshot again", path.display())]
    Page { path: PathBuf, gpa: u64, expected: u32, found: u32 },
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error(transparent)]
    Buffer(#[from] BufferError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("pages cannot be brought one by one; `--eager` reads all of them before the start")]
    Attach(#[from] AttachError),
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    #[error(transparent)]
    Handlers(#[from] HandlerError),
    #[error("interrupted")]
    Cancelled,
}

impl Classified for SnapshotError {
    fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => Class::of_named_file(source),
            Self::Written(error) => error.class(),
            Self::Input(error) => error.class(),
            // Found before the start or at a fault, a page is wrong.
            Self::Page { .. } => Class::Wrong,
            Self::Bad { why: BadContent::Cpu(_), .. } => Class::Host,
            Self::Bad { .. } => Class::Mistake,
            Self::Vm(error) => error.class(),
            Self::State(error) => error.class(),
            Self::Guest(error) => error.class(),
            Self::Content(error) => error.class(),
            Self::Scan(error) => error.class(),
            Self::Buffer(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Attach(error) => error.class(),
            Self::HandOver(error) => error.class(),
            Self::Handlers(error) => error.class(),
            Self::Cancelled => Class::Interrupted,
        }
    }
}

/// The defect of a snapshot file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BadContent {
    #[error(transparent)]
    Header(#[from] header::HeaderError),
    #[error(transparent)]
    Index(#[from] index::IndexError),
    #[error(
        "its vCPUs' states are damaged: the checksum is {found:#010x}, not {expected:#010x}; make the snapshot again"
    )]
    States { expected: u32, found: u32 },
    #[error(transparent)]
    State(#[from] state_bytes::BadState),
    #[error(transparent)]
    Cpu(#[from] OtherCpu),
}
