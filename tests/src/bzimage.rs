//! bzImages made on the spot: small kernels that do one thing, and files that pretend to be kernels.
//!
//! ```text
//! 0x000                0x1f1          0x400                    0x6cc
//! │ what firmware runs │ setup header │ what a guest would run │ payload: gzip, its last 4 bytes the size claimed
//! ```

use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use linux_boot::fixture;

use crate::elf;

/// What the kernel takes from where it is linked, before it has read a memory map.
const INIT_SIZE: u32 = 2 << 20;
/// Where the setup header has the address that the kernel prefers.
const PREF_ADDRESS: usize = 0x258;
/// Bytes of a gzip stream's last field, the size of its content.
const CLAIM: usize = 4;

/// A bzImage whose kernel runs these bytes, in 64-bit mode with the first 4 GiB mapped to themselves.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    around(&gzip(&elf::image(code)))
}

/// A bzImage, of protocol 2.15, with this payload.
pub fn around(payload: &[u8]) -> Vec<u8> {
    let mut image = fixture::bzimage(payload, INIT_SIZE);
    image[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&u64::from(elf::CODE_GPA).to_le_bytes());
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
