//! The buffers of a thread that evicts.

use crate::state::BLOCK_PAGES;
use crate::store::{BufferError, PageBuffer, Slot};
use crate::swapper::Swapper;

/// The share of a claim in one of its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Share {
    /// None: the page was not resident, or has left the claim.
    #[default]
    None,
    /// The page, write-protected.
    Claimed,
    /// The page, which is zero.
    Zero,
    /// The page, and its content in the store, with this checksum.
    Stored(Slot, u32),
}

impl Share {
    /// Whether it may leave.
    pub(super) fn is_packed(self) -> bool {
        matches!(self, Self::Zero | Self::Stored(..))
    }
}

/// Evicts pages, on one thread. Any number of threads evict from one [`Swapper`].
#[derive(Debug)]
pub struct Evictor<'s> {
    pub(super) swapper: &'s Swapper,
    pub(super) buffer: PageBuffer,
    pub(super) slots: Vec<Slot>,
    /// By page of the claim at hand.
    pub(super) shares: Vec<Share>,
}

impl<'s> Evictor<'s> {
    /// An evictor with its buffers.
    ///
    /// # Errors
    /// There is no memory for its buffer of 2 MiB.
    pub fn new(swapper: &'s Swapper) -> Result<Self, BufferError> {
        Ok(Self {
            swapper,
            buffer: PageBuffer::new(BLOCK_PAGES)?,
            slots: Vec::with_capacity(BLOCK_PAGES),
            shares: Vec::with_capacity(BLOCK_PAGES),
        })
    }
}
