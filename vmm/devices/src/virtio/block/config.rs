//! The configuration space of virtio-blk.

/// Most buffers of data in one request; two more descriptors hold header and status.
pub(super) const SEGMENTS: u32 = 126;
/// Most bytes of one buffer.
pub(super) const SEGMENT_SIZE: u32 = 128 << 10;
/// Most ranges in one discard or write-zeroes request.
pub(super) const RANGES: u32 = 32;

/// Bytes of the space, up to and with the write-zeroes fields.
const SIZE: usize = 60;

/// The space as a driver reads it.
pub(super) fn space(sectors: u64) -> [u8; SIZE] {
    let mut bytes = [0u8; SIZE];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_SIZE.to_le_bytes());
    put(12, &SEGMENTS.to_le_bytes());
    // max_discard_sectors, max_discard_seg, discard_sector_alignment (a page: smaller holes free nothing)
    put(36, &u32::MAX.to_le_bytes());
    put(40, &RANGES.to_le_bytes());
    put(44, &8u32.to_le_bytes());
    // max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap
    put(48, &u32::MAX.to_le_bytes());
    put(52, &RANGES.to_le_bytes());
    put(56, &[1]);
    bytes
}
