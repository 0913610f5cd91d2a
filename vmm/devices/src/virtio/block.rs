//! virtio-blk on a raw image.
//!
//! ```text
//!   chain:  readable  [ type, sector (16 bytes) | data to be written ... ]     however it is cut
//!           writable  [ data read ...                       | status (1) ]     into descriptors
//! ```
//!
//! What a guest asks wrongly is answered by the status byte. Only a chain without room for a status byte in RAM is a
//! fault: there is no other place for an answer.

mod config;
mod disk;
#[cfg(test)]
mod tests;

use std::ops::Range;

use vm_memory::{GuestMemoryBackend, ReadVolatile, WriteVolatile};

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::queue::{Buffer, Chain, Outcome, QueueError, copy_from, copy_to, pieces, total_len};
use super::{Running, VirtioDevice, copy_config};
use config::{RANGES, SEGMENT_SIZE, SEGMENTS};

use guest::GuestRam;

pub use disk::{Disk, DiskError};

/// Bytes of a sector of the protocol; those of the disk may be larger.
const SECTOR: u64 = 512;
/// Bytes of a request's header.
const HEADER: u64 = 16;
/// Most bytes that one request may move: what a driver that keeps to the two limits cannot exceed.
const REQUEST: u64 = SEGMENTS as u64 * SEGMENT_SIZE as u64;
/// Bytes of one such range.
const RANGE: u64 = 16;

/// How a request failed: its status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestError {
    Io,
    Unsupported,
}

/// What is done to a range of bytes, with the flags that came with it.
type OnRange<'a> = dyn FnMut(&mut Disk, Range<u64>, u32) -> Result<(), RequestError> + 'a;

/// A virtio block device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
}

impl Block {
    /// A device for `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk }
    }

    /// Answers one request.
    fn answer(&mut self, memory: &GuestRam, chain: &Chain<'_>) -> Result<Outcome, &'static str> {
        let room = total_len(chain.writable);
        let Some(data) = room.checked_sub(1) else { return Err("has no room for a status") };
        let status = match self.perform(memory, chain, data) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(RequestError::Io) => VIRTIO_BLK_S_IOERR,
            Err(RequestError::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        };
        copy_to(memory, chain.writable, data, &[status as u8]).ok_or("has its status outside of RAM")?;
        Ok(Outcome::Used(room as u32))
    }

    fn perform(&mut self, memory: &GuestRam, chain: &Chain<'_>, room: u64) -> Result<(), RequestError> {
        let mut header = [0u8; HEADER as usize];
        copy_from(memory, chain.readable, 0, &mut header).ok_or(RequestError::Io)?;
        let sector = u64::from_le_bytes([
            header[8], header[9], header[10], header[11], header[12], header[13], header[14], header[15],
        ]);
        let data = total_len(chain.readable) - HEADER;
        match u32::from_le_bytes([header[0], header[1], header[2], header[3]]) {
            VIRTIO_BLK_T_IN => {
                self.seek(sector, room)?;
                for_each_slice(memory, chain.writable, 0, room, &mut |mut slice| {
                    self.disk.file().read_exact_volatile(&mut slice)
                })
            }
            VIRTIO_BLK_T_OUT => {
                self.writable()?;
                self.seek(sector, data)?;
                for_each_slice(memory, chain.readable, HEADER, data, &mut |slice| {
                    self.disk.file().write_all_volatile(&slice)
                })
            }
            VIRTIO_BLK_T_FLUSH => self.disk.file().sync_data().map_err(|_| RequestError::Io),
            VIRTIO_BLK_T_GET_ID => {
                let id = self.disk.id();
                let len = id.len().min(room as usize);
                copy_to(memory, chain.writable, 0, &id[..len]).ok_or(RequestError::Io)
            }
            VIRTIO_BLK_T_DISCARD => {
                self.each_range(memory, chain.readable, data, &mut |disk, range, flags| {
                    // No flag has a meaning here.
                    if flags != 0 { Err(RequestError::Unsupported) } else { disk.punch_hole(range) }
                })
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                self.each_range(memory, chain.readable, data, &mut |disk, range, flags| match flags {
                    0 => disk.write_zeroes(range),
                    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => disk.punch_hole(range),
                    _ => Err(RequestError::Unsupported),
                })
            }
            _ => Err(RequestError::Unsupported),
        }
    }

    fn writable(&self) -> Result<(), RequestError> {
        if self.disk.is_read_only() { Err(RequestError::Io) } else { Ok(()) }
    }

    /// Goes to `sector` if `len` bytes from there are whole sectors of the disk, and not more than one request may move.
    fn seek(&mut self, sector: u64, len: u64) -> Result<(), RequestError> {
        if len > REQUEST {
            return Err(RequestError::Io);
        }
        let start = self.disk.range(sector, len)?.start;
        self.disk.seek(start)
    }

    /// Does something to each range that a discard or write-zeroes request names, once all of them have been checked.
    fn each_range(
        &mut self,
        memory: &GuestRam,
        buffers: &[Buffer],
        len: u64,
        act: &mut OnRange<'_>,
    ) -> Result<(), RequestError> {
        self.writable()?;
        if len == 0 || !len.is_multiple_of(RANGE) || len > u64::from(RANGES) * RANGE {
            return Err(RequestError::Io);
        }
        let mut ranges = Vec::new();
        for at in (HEADER..HEADER + len).step_by(RANGE as usize) {
            let mut sector = [0u8; 8];
            let mut rest = [0u8; 8];
            copy_from(memory, buffers, at, &mut sector).ok_or(RequestError::Io)?;
            copy_from(memory, buffers, at + 8, &mut rest).ok_or(RequestError::Io)?;
            let (sectors, flags) =
                (u64::from_le_bytes(rest) & u64::from(u32::MAX), u64::from_le_bytes(rest) >> 32);
            ranges.push((self.disk.range(u64::from_le_bytes(sector), sectors * SECTOR)?, flags as u32));
        }
        ranges.into_iter().try_for_each(|(range, flags)| act(&mut self.disk, range, flags))
    }
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[128]
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH;
        let writing = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
        always | if self.disk.is_read_only() { 1 << VIRTIO_BLK_F_RO } else { writing }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&config::space(self.disk.sectors()), offset, data);
    }

    /// Nothing in it is the driver's.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self) {}

    fn serve(&mut self, queue: usize, running: &mut Running) -> Result<(), QueueError> {
        running.serve(queue, &mut |memory, chain| {
            self.answer(memory, chain).map_err(|what| QueueError::Chain { queue, head: chain.head, what })
        })
    }
}

type Slice<'a> = vm_memory::VolatileSlice<'a, ()>;

/// Moves bytes `[from, from + len)` of the buffers, piece by piece.
fn for_each_slice(
    memory: &GuestRam,
    buffers: &[Buffer],
    from: u64,
    len: u64,
    transfer: &mut dyn FnMut(Slice<'_>) -> Result<(), vm_memory::VolatileMemoryError>,
) -> Result<(), RequestError> {
    for (address, len) in pieces(buffers, from, len) {
        for slice in memory.get_slices(address, len) {
            let slice = slice.map_err(|_| RequestError::Io)?;
            // The file may have been cut short since it was opened: an end of file is an error too.
            transfer(slice).map_err(|_| RequestError::Io)?;
        }
    }
    Ok(())
}
