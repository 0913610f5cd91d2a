//! xz streams made by hand, whose headers ask for what a test wants them to.
//!
//! ```text
//! │ stream header │ block header: LZMA2, dictionary │ one chunk, not compressed │ end │ index │ footer │
//! ```

/// The dictionary sizes of LZMA2 by the byte that stands for them.
pub mod dictionary {
    /// 64 KiB.
    pub const SMALL: u8 = 8;
    /// 128 MiB.
    pub const LARGE: u8 = 30;
    /// 1 GiB.
    pub const HUGE: u8 = 36;
}

/// Neither a checksum of the content, nor any other option.
const FLAGS: [u8; 2] = [0, 0];
/// The most bytes of one chunk.
const CHUNK: usize = 1 << 16;

/// A stream that holds `content` as it is and asks for a dictionary of the size that `dictionary` stands for.
pub fn stored(content: &[u8], dictionary: u8) -> Vec<u8> {
    let mut stream = [&b"\xfd7zXZ\0"[..], &FLAGS, &crc32(&FLAGS).to_le_bytes()].concat();
    // One filter, sizes not given; LZMA2, one byte of properties; padding.
    let header = [2, 0, 0x21, 1, dictionary, 0, 0, 0];
    let block = [&header[..], &crc32(&header).to_le_bytes(), &lzma2(content)].concat();
    stream.extend(&block);
    stream.resize(stream.len().next_multiple_of(4), 0);
    let mut index = [&[0, 1][..], &number(block.len()), &number(content.len())].concat();
    index.resize(index.len().next_multiple_of(4), 0);
    let index = [&index[..], &crc32(&index).to_le_bytes()].concat();
    stream.extend(&index);
    let backward = [&(index.len() as u32 / 4 - 1).to_le_bytes()[..], &FLAGS].concat();
    stream.extend([&crc32(&backward).to_le_bytes()[..], &backward, b"YZ"].concat());
    stream
}

fn lzma2(content: &[u8]) -> Vec<u8> {
    assert!(!content.is_empty(), "a stream without a chunk has no dictionary");
    let mut packed = Vec::new();
    for (index, chunk) in content.chunks(CHUNK).enumerate() {
        // Not compressed: the first resets the dictionary.
        packed.push(if index == 0 { 1 } else { 2 });
        packed.extend((chunk.len() as u16).wrapping_sub(1).to_be_bytes());
        packed.extend(chunk);
    }
    packed.push(0);
    packed
}

/// Seven bits a byte, the lowest first.
fn number(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// CRC-32, as xz, gzip and snapshots have it.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}
