//! The messages of a userfaultfd, decoded from their bytes. Pure.
//!
//! ```text
//!   0        1        4        8                16                24                32
//!   │ event  │ reserved        │ flags          │ address         │ thread          │  PAGEFAULT
//!   │        │                 │ from           │ to              │ len             │  REMAP
//!   │        │                 │ start          │ end             │                 │  REMOVE, UNMAP
//! ```

use guest_mem::{Address, Hva, HvaRange, PAGE_SIZE};

use crate::abi;

/// The bytes of one message, `struct uffd_msg`.
pub type Message = [u8; abi::MESSAGE];

/// One message of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for a page.
    Fault(PageFault),
    /// The pages of `from` are now at `to`, with their registration (`mremap`). After the fact, but the thread
    /// waits until the message is read. A mapping that grew or shrank on its way says so nowhere: `from` is what
    /// it was. An empty `from` is a duplicate of shared memory.
    Remap {
        /// Where the pages were.
        from: HvaRange,
        /// Where they start now.
        to: Hva,
    },
    /// The pages are about to be discarded (`MADV_DONTNEED`, `MADV_FREE`, `MADV_REMOVE`): before the zap, and the
    /// thread waits until the message is read. Nothing says when the zap is done.
    Remove(HvaRange),
    /// The mapping is gone (`munmap`, or what `mremap` and `mmap` replaced). After the fact, but the thread waits
    /// until the message is read.
    Unmap(HvaRange),
}

/// A thread that waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The address of the access with [`crate::Features::EXACT_ADDRESS`], else the start of its page.
    pub address: Hva,
    /// The kind of the fault.
    pub kind: FaultKind,
    /// Whether the access was a write. For a guest's access this is KVM's request to the host, which is a write more often
    /// than the guest's instruction is.
    pub write: bool,
    /// The waiting thread, with [`crate::Features::THREAD_ID`]: its number in its own PID namespace.
    pub thread: Option<u32>,
}

impl PageFault {
    /// Where the page starts.
    pub fn page(&self) -> Hva {
        self.address.align_down(PAGE_SIZE)
    }
}

/// What the page of a fault lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The page: resolved by copying, zeroing or moving a page in.
    Missing,
    /// Only the page-table entry, the page is in the page cache: resolved by continuing.
    Minor,
    /// The right to write: resolved by taking the protection away.
    WriteProtect,
}

/// A message that no known kernel sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum DecodeError {
    #[error("userfaultfd message with event {0:#x}: it is unknown here, and was not asked for")]
    Event(u8),
    #[error(
        "userfaultfd fault at {address} with flags {flags:#x}: some are unknown here, and were not asked for"
    )]
    Flags { flags: u64, address: Hva },
    #[error("userfaultfd fault at {address} that claims to be both minor and write-protect")]
    Contradictory { address: Hva },
    #[error("userfaultfd {event} event of [{start:#x}, {end:#x}): not made of whole pages")]
    Unaligned { event: &'static str, start: u64, end: u64 },
    #[error("userfaultfd {event} event of {len:#x} bytes at {start:#x}: it runs backwards or wraps")]
    Wrapping { event: &'static str, start: u64, len: u64 },
}

impl Event {
    /// Decodes a message. Reserved bytes are not looked at: a later kernel may use them for features that were not asked for.
    ///
    /// # Errors
    /// The message contradicts itself, or is of a kind that was not asked for.
    pub fn decode(message: &Message) -> Result<Self, DecodeError> {
        let event = message[abi::AT_EVENT];
        match u32::from(event) {
            abi::UFFD_EVENT_PAGEFAULT => decode_fault(message).map(Self::Fault),
            abi::UFFD_EVENT_REMAP => {
                let (from, to) = (word(message, abi::AT_REMAP_FROM), word(message, abi::AT_REMAP_TO));
                let len = word(message, abi::AT_REMAP_LEN);
                let from = whole_pages("remap", from, len)?;
                let to = whole_pages("remap", to, len)?;
                Ok(Self::Remap { from, to: to.start() })
            }
            abi::UFFD_EVENT_REMOVE => decode_range("remove", message).map(Self::Remove),
            abi::UFFD_EVENT_UNMAP => decode_range("unmap", message).map(Self::Unmap),
            _ => Err(DecodeError::Event(event)),
        }
    }
}

fn decode_fault(message: &Message) -> Result<PageFault, DecodeError> {
    const KNOWN: u32 =
        abi::UFFD_PAGEFAULT_FLAG_WRITE | abi::UFFD_PAGEFAULT_FLAG_WP | abi::UFFD_PAGEFAULT_FLAG_MINOR;
    let flags = word(message, abi::AT_PAGEFAULT_FLAGS);
    let address = Hva::new(word(message, abi::AT_PAGEFAULT_ADDRESS));
    if flags & !u64::from(KNOWN) != 0 {
        return Err(DecodeError::Flags { flags, address });
    }
    let has = |flag: u32| flags & u64::from(flag) != 0;
    let kind = match (has(abi::UFFD_PAGEFAULT_FLAG_WP), has(abi::UFFD_PAGEFAULT_FLAG_MINOR)) {
        (false, false) => FaultKind::Missing,
        (false, true) => FaultKind::Minor,
        (true, false) => FaultKind::WriteProtect,
        (true, true) => return Err(DecodeError::Contradictory { address }),
    };
    let thread = Some(word32(message, abi::AT_PAGEFAULT_PTID)).filter(|&thread| thread != 0);
    Ok(PageFault { address, kind, write: has(abi::UFFD_PAGEFAULT_FLAG_WRITE), thread })
}

fn decode_range(event: &'static str, message: &Message) -> Result<HvaRange, DecodeError> {
    let (start, end) = (word(message, abi::AT_REMOVE_START), word(message, abi::AT_REMOVE_END));
    let wrapping = DecodeError::Wrapping { event, start, len: end.wrapping_sub(start) };
    whole_pages(event, start, end.checked_sub(start).ok_or(wrapping)?)
}

fn whole_pages(event: &'static str, start: u64, len: u64) -> Result<HvaRange, DecodeError> {
    let wrapping = DecodeError::Wrapping { event, start, len };
    let range = HvaRange::with_len(Hva::new(start), len).ok_or(wrapping)?;
    if !range.start().is_aligned(PAGE_SIZE) || !range.end().is_aligned(PAGE_SIZE) {
        return Err(DecodeError::Unaligned { event, start, end: range.end().get() });
    }
    Ok(range)
}

/// The 8 bytes at `at`.
fn word(message: &Message, at: usize) -> u64 {
    u64::from_ne_bytes(*message[at..].first_chunk().expect("8 bytes of the message"))
}

/// The 4 bytes at `at`.
fn word32(message: &Message, at: usize) -> u32 {
    u32::from_ne_bytes(*message[at..].first_chunk().expect("4 bytes of the message"))
}

#[cfg(test)]
pub(crate) mod tests;
