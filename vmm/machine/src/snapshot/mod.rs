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
//! hold its checksum never gets into the guest: whoever asks for it waits, and the guest is stopped ([`stop::Stopper`]).

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

/// Why there is no snapshot, or no guest from one.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A system call on the file failed.
    #[error("{attempt} the snapshot {}", path.display())]
    Io {
        /// What was tried.
        attempt: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The file could not be written.
    #[error("no snapshot was made")]
    Written(#[from] WholeFileError),
    /// It cannot be opened, or is a directory, a device, a pipe.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The file's content is no use.
    #[error("the snapshot {}: {why}", path.display())]
    Bad {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: Bad,
    },
    /// A page of it is not what was written, found while all of them were read.
    #[error("the snapshot {}: the page at guest physical address {gpa:#x} is damaged: its checksum is {found:#010x}, not \
             {expected:#010x}; make the snapshot again", path.display())]
    Page {
        /// Which file.
        path: PathBuf,
        /// Which page.
        gpa: u64,
        /// What was stored.
        expected: u32,
        /// What was read.
        found: u32,
    },
    /// The VM could not be made.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A vCPU's state could not be taken or given.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest did not do its work.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Memory could not be read or written.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// What the pages are could not be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// No buffer.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// Pages could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no userfaultfd over the memory.
    #[error("pages cannot be brought one by one; `--eager` reads all of them before the start")]
    Attach(#[from] AttachError),
    /// Memory was used before it was handed over.
    #[error(transparent)]
    HandOver(#[from] HandOverError),
    /// Nobody to serve faults, or one of them gave up.
    #[error(transparent)]
    Handlers(#[from] HandlerError),
    /// The user wants to stop.
    #[error("interrupted")]
    Cancelled,
}

impl Classified for SnapshotError {
    fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => Class::of_named_file(source),
            Self::Written(error) => error.class(),
            Self::Input(error) => error.class(),
            // Whether it is found before the start or at a fault: a page is wrong.
            Self::Page { .. } => Class::Wrong,
            Self::Bad { why: Bad::Cpu(_), .. } => Class::Host,
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

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    /// Its header.
    #[error(transparent)]
    Header(#[from] header::HeaderError),
    /// Its index.
    #[error(transparent)]
    Index(#[from] index::IndexError),
    /// The vCPUs' states are not what was written.
    #[error(
        "its vCPUs' states are damaged: the checksum is {found:#010x}, not {expected:#010x}; make the snapshot again"
    )]
    States {
        /// What the header says.
        expected: u32,
        /// What their bytes give.
        found: u32,
    },
    /// A vCPU's state makes no sense.
    #[error(transparent)]
    State(#[from] state_bytes::BadState),
    /// It was made on another processor.
    #[error(transparent)]
    Cpu(#[from] OtherCpu),
}
