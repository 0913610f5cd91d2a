//! bzImages made on the spot: small kernels that do one thing, and files that pretend to be kernels.
//!
//! ```text
//! 0x000                0x1f1          0x400                    0x6cc
//! │ what firmware runs │ setup header │ what a guest would run │ payload: gzip, its last 4 bytes the size claimed
//! ```

use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::elf;

/// Bytes before the protected-mode part: the boot sector and one more.
const SETUP: usize = 2 * 512;
/// Where the payload lies in the protected-mode part; after the 64-bit entry.
const PAYLOAD: usize = 0x2cc;
/// What the kernel takes from where it is linked, before it has read a memory map.
const INIT_SIZE: u32 = 2 << 20;
/// Bytes of a gzip stream's last field, the size of its content.
const CLAIM: usize = 4;

/// A bzImage whose kernel runs these bytes, in 64-bit mode with the first 4 GiB mapped to themselves.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    around(&gzip(&elf::image(code)))
}

/// A bzImage, of protocol 2.15, with this payload.
pub fn around(payload: &[u8]) -> Vec<u8> {
    let protected = (PAYLOAD + payload.len()).next_multiple_of(16);
    let mut image = vec![0; SETUP + protected];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &(protected as u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x6a]); // a jump; its distance is the header's length
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x248, &(PAYLOAD as u32).to_le_bytes()); // payload_offset
    put(0x24c, &(payload.len() as u32).to_le_bytes()); // payload_length
    put(0x258, &u64::from(elf::CODE_GPA).to_le_bytes()); // pref_address
    put(0x260, &INIT_SIZE.to_le_bytes());
    put(SETUP + PAYLOAD, payload);
    image
}

/// What `gzip` makes of `content`.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    gzip_of(content)
}

/// `len` zeroes as gzip packs them, to a thousandth.
pub fn gzip_of_zeroes(len: u64) -> Vec<u8> {
    gzip_of(std::io::repeat(0).take(len))
}

/// The payload with another size claimed at its end.
pub fn claiming(mut payload: Vec<u8>, size: u32) -> Vec<u8> {
    let at = payload.len() - CLAIM;
    payload[at..].copy_from_slice(&size.to_le_bytes());
    payload
}

/// The payload cut after `len` bytes of its stream, with the size of the whole still behind it.
pub fn cut(payload: &[u8], len: usize) -> Vec<u8> {
    [&payload[..len], &payload[payload.len() - CLAIM..]].concat()
}

fn gzip_of(mut content: impl Read) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut content, &mut encoder).and_then(|_| encoder.flush()).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}
