//! One virtqueue, and the chains of descriptors that a driver puts into it.
//!
//! Rings and descriptors are walked by virtio-queue; added here is what it passes over in silence: a chain that breaks
//! off, runs in a circle or is in the wrong order is a [`QueueError`], not a shorter chain. A chain is read once; what
//! the guest writes into its descriptors later changes nothing.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use super::interrupt::Interrupt;
use guest::GuestRam;

/// The longest chain served. Drivers stay below the size of their queue, except with an indirect table.
const LONGEST_CHAIN: usize = 1024;

/// Why a queue cannot be served any more.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum QueueError {
    #[error("queue {queue}: {source}")]
    Ring { queue: usize, source: virtio_queue::Error },
    #[error("queue {queue}: {what}")]
    Setup { queue: usize, what: &'static str },
    #[error("queue {queue}: the descriptor chain at {head} {what}")]
    Chain { queue: usize, head: u16, what: &'static str },
}

/// Whether a queue has been served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// As far as it goes now: the driver notifies when there is more, or what the device waits for is on its way.
    Done,
    /// Its turn is over, and there is more.
    More,
}

/// What a device did with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Used it, and wrote so many bytes.
    Used(u32),
    /// Could not serve it yet: it is the next one again, once something else has happened.
    Later,
    /// Has served enough of it for one turn: it is the next one again.
    Again,
}

/// One descriptor's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where in guest memory, or outside of it.
    pub address: GuestAddress,
    /// Bytes; `address + len` does not overflow.
    pub len: u32,
}

/// A chain as the driver made it: first what the device reads, then what it writes.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a> {
    /// The first descriptor.
    pub head: u16,
    /// What the device may read.
    pub readable: &'a [Buffer],
    /// What the device may write.
    pub writable: &'a [Buffer],
}

/// All bytes of some buffers. At most 2^32 in one chain.
pub fn total_len(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// The pieces of guest memory that hold bytes `[from, from + len)` of `buffers`, as far as they go.
pub fn pieces(
    buffers: &[Buffer],
    from: u64,
    len: u64,
) -> impl Iterator<Item = (GuestAddress, usize)> + use<'_> {
    let (mut skip, mut left) = (from, len);
    buffers.iter().filter_map(move |buffer| {
        let skipped = skip.min(u64::from(buffer.len));
        skip -= skipped;
        let len = left.min(u64::from(buffer.len) - skipped);
        left -= len;
        (len > 0).then(|| (GuestAddress(buffer.address.0 + skipped), len as usize))
    })
}

/// Copies from guest memory, at `from` into the buffers. `None` if they are too short or lie outside of RAM.
pub fn copy_from(memory: &GuestRam, buffers: &[Buffer], from: u64, data: &mut [u8]) -> Option<()> {
    let mut done = 0;
    for (address, len) in pieces(buffers, from, data.len() as u64) {
        memory.read_slice(&mut data[done..done + len], address).ok()?;
        done += len;
    }
    (done == data.len()).then_some(())
}

/// Copies to guest memory, at `from` into the buffers. `None` if they are too short or lie outside of RAM.
pub fn copy_to(memory: &GuestRam, buffers: &[Buffer], from: u64, data: &[u8]) -> Option<()> {
    let mut done = 0;
    for (address, len) in pieces(buffers, from, data.len() as u64) {
        memory.write_slice(&data[done..done + len], address).ok()?;
        done += len;
    }
    (done == data.len()).then_some(())
}

/// Whether a buffer lies in RAM from its first byte to its last.
pub fn lies_in_ram(memory: &GuestRam, buffer: Buffer) -> bool {
    memory.check_range(buffer.address, buffer.len as usize)
}

/// Where a driver put a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    pub size: u32,
    pub descriptors: u64,
    pub driver: u64,
    pub device: u64,
}

/// A queue in service.
#[derive(Debug)]
pub struct VirtQueue {
    index: usize,
    queue: Queue,
    /// The chain being served, and how many of its buffers are readable.
    buffers: Vec<Buffer>,
}

impl VirtQueue {
    /// A queue that the driver does not use.
    pub(super) fn unused(index: usize, max_size: u16) -> Result<Self, QueueError> {
        let queue = Queue::new(max_size).map_err(|source| QueueError::Ring { queue: index, source })?;
        Ok(Self { index, queue, buffers: Vec::new() })
    }

    /// Takes the queue into service where the driver has put it.
    pub(super) fn set_up(
        &mut self,
        layout: Layout,
        memory: &GuestRam,
        event_idx: bool,
    ) -> Result<(), QueueError> {
        let ring = |source| QueueError::Ring { queue: self.index, source };
        let size = u16::try_from(layout.size).map_err(|_| ring(virtio_queue::Error::InvalidSize))?;
        self.queue.try_set_size(size).map_err(ring)?;
        self.queue.try_set_desc_table_address(GuestAddress(layout.descriptors)).map_err(ring)?;
        self.queue.try_set_avail_ring_address(GuestAddress(layout.driver)).map_err(ring)?;
        self.queue.try_set_used_ring_address(GuestAddress(layout.device)).map_err(ring)?;
        self.queue.set_event_idx(event_idx);
        self.queue.set_ready(true);
        if layout.driver == 0 {
            // virtio-queue takes a ring at 0 for one that was never set.
            return Err(QueueError::Setup { queue: self.index, what: "the available ring is at address 0" });
        }
        if !self.queue.is_valid(memory) {
            return Err(QueueError::Setup { queue: self.index, what: "a ring lies outside of RAM" });
        }
        Ok(())
    }

    /// Takes the queue out of service.
    pub(super) fn stop(&mut self) {
        self.queue.set_ready(false);
    }

    /// Hands each available chain to `serve`, at most as many as the queue has descriptors, and tells the driver what
    /// was used.
    pub fn serve(
        &mut self,
        memory: &GuestRam,
        interrupt: &Interrupt,
        serve: &mut dyn FnMut(&Chain<'_>) -> Result<Outcome, QueueError>,
    ) -> Result<Turn, QueueError> {
        if !self.queue.ready() {
            return Ok(Turn::Done);
        }
        let mut left = self.queue.size();
        let mut used = false;
        let turn = loop {
            let index = self.index;
            let ring = move |source| QueueError::Ring { queue: index, source };
            self.queue.disable_notification(memory).map_err(ring)?;
            let mut stopped = None;
            while left > 0 && stopped.is_none() {
                let Some((head, readable)) = self.take(memory)? else { break };
                left -= 1;
                let (readable, writable) = self.buffers.split_at(readable);
                match serve(&Chain { head, readable, writable })? {
                    Outcome::Used(len) => {
                        self.queue.add_used(memory, head, len).map_err(ring)?;
                        used = true;
                    }
                    Outcome::Later => stopped = Some(Turn::Done),
                    Outcome::Again => stopped = Some(Turn::More),
                }
            }
            if let Some(turn) = stopped {
                self.queue.go_to_previous_position();
                break turn;
            }
            if left == 0 {
                break Turn::More;
            }
            // Looks again after the driver has been asked to notify: what came in between is not lost.
            if !self.queue.enable_notification(memory).map_err(ring)? {
                break Turn::Done;
            }
            // A pass counts even if the chain has vanished again: the index is the guest's to flip.
            left -= 1;
        };
        if used {
            self.tell(memory, interrupt)?;
        }
        Ok(turn)
    }

    fn tell(&mut self, memory: &GuestRam, interrupt: &Interrupt) -> Result<(), QueueError> {
        let wanted = self.queue.needs_notification(memory);
        if wanted.map_err(|source| QueueError::Ring { queue: self.index, source })? {
            interrupt.used_buffers();
        }
        Ok(())
    }

    /// Reads the next available chain into `buffers`: its head and how many of them are readable.
    fn take(&mut self, memory: &GuestRam) -> Result<Option<(u16, usize)>, QueueError> {
        let queue = self.index;
        let chain = self.queue.iter(memory).map_err(|source| QueueError::Ring { queue, source })?.next();
        let Some(chain) = chain else { return Ok(None) };
        let head = chain.head_index();
        let fault = |what| Err(QueueError::Chain { queue, head, what });
        self.buffers.clear();
        let (mut readable, mut ended) = (0, false);
        for descriptor in chain {
            let buffer = Buffer { address: descriptor.addr(), len: descriptor.len() };
            if self.buffers.len() == LONGEST_CHAIN {
                return fault("is too long");
            }
            if buffer.address.checked_add(u64::from(buffer.len)).is_none() {
                return fault("has a buffer that wraps around the address space");
            }
            if !descriptor.is_write_only() {
                if readable < self.buffers.len() {
                    return fault("has a readable buffer after a writable one");
                }
                readable += 1;
            }
            self.buffers.push(buffer);
            ended = !descriptor.has_next();
        }
        if !ended {
            return fault("breaks off, or never ends");
        }
        Ok(Some((head, readable)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Against the list of all the bytes' addresses.
        #[test]
        fn pieces_agree_with_enumeration(
            buffers in prop::collection::vec((0u64..1000, 0u32..6), 0..6), from in 0u64..40, len in 0u64..40,
        ) {
            let buffers: Vec<_> =
                buffers.iter().map(|&(at, len)| Buffer { address: GuestAddress(at), len }).collect();
            let all = buffers.iter().flat_map(|b| (b.address.0..).take(b.len as usize));
            let naive: Vec<u64> = all.skip(from as usize).take(len as usize).collect();
            let found: Vec<u64> = pieces(&buffers, from, len).flat_map(|(at, len)| (at.0..).take(len)).collect();
            prop_assert_eq!(found, naive);
        }
    }
}
