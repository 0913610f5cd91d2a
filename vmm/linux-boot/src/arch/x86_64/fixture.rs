//! Kernels made by the tests themselves: ELF files, payloads of every compression, bzImages around them.
#![allow(clippy::unwrap_used, reason = "for tests")]

use std::io::Write;

use lzma_rust2::{CheckType, FilterType, XzOptions, XzWriter};

use crate::compression::Compression;

/// The compressions that are unpacked.
pub const PACKED: [Compression; 4] =
    [Compression::Gzip, Compression::Xz, Compression::Lz4, Compression::Zstd];

/// One PT_LOAD program header.
#[derive(Clone)]
pub struct Load {
    /// Where it is loaded.
    pub at: u64,
    /// What of it is in the file.
    pub bytes: Vec<u8>,
    /// How many bytes it takes in memory.
    pub memory: u64,
}

/// An x86-64 ELF executable with these segments, and a PVH note if `pvh` is given.
pub fn elf(entry: u64, loads: &[Load], pvh: Option<u32>) -> Vec<u8> {
    let headers = loads.len() + usize::from(pvh.is_some());
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1_u32.to_le_bytes());
    image.extend([entry, 64, 0].map(u64::to_le_bytes).concat());
    image.extend(0_u32.to_le_bytes());
    image.extend([64, 56, headers as u16, 64, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = 64 + 56 * headers as u64;
    let mut data = Vec::new();
    let note = pvh.map(|entry| {
        [[4, 4, 18].map(u32::to_le_bytes).concat(), b"Xen\0".to_vec(), entry.to_le_bytes().to_vec()].concat()
    });
    let pieces = loads.iter().map(|load| (1_u32, load.at, load.bytes.clone(), load.memory));
    let note = note.into_iter().map(|note| (4, 0, note.clone(), note.len() as u64));
    for (kind, at, bytes, memory) in pieces.chain(note) {
        image.extend([kind, 7].map(u32::to_le_bytes).concat());
        image.extend([offset, at, at, bytes.len() as u64, memory, 4096].map(u64::to_le_bytes).concat());
        offset += bytes.len() as u64;
        data.extend(bytes);
    }
    image.extend(data);
    image
}

/// 16 MiB, where x86 kernels are linked to lie.
pub const KERNEL_AT: u64 = 0x100_0000;

/// A kernel of two segments: some 200 KiB that compress, with calls in them that the x86 filter would change, and
/// one with a BSS.
pub fn kernel() -> Vec<u8> {
    let calls =
        (0..20_000_u32).flat_map(|at| [[0xe8_u8].to_vec(), (at * 37).to_le_bytes().to_vec(), vec![0x90; 5]]);
    let text = Load { at: KERNEL_AT, bytes: calls.flatten().collect(), memory: 0x4_0000 };
    let data = Load { at: KERNEL_AT + 0x10_0000, bytes: vec![0x5a; 0x1000], memory: 0x2_0000 };
    elf(KERNEL_AT + 0x20, &[text, data], None)
}

/// `content` as a compressed stream.
pub fn stream(compression: Compression, content: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Xz => {
            // As the kernel's own script does it: CRC32, and the x86 filter before LZMA2.
            let mut options = XzOptions::with_preset(1);
            options.set_check_sum_type(CheckType::Crc32);
            options.prepend_pre_filter(FilterType::BcjX86, 0);
            let mut encoder = XzWriter::new(Vec::new(), options).unwrap();
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Lz4 => {
            let mut frame = vec![0x02, 0x21, 0x4c, 0x18];
            for block in content.chunks(8 << 20) {
                let packed = lz4_flex::block::compress(block);
                frame.extend((packed.len() as u32).to_le_bytes());
                frame.extend(packed);
            }
            frame
        }
        Compression::Zstd => {
            let mut packed = vec![0; zstd_safe::compress_bound(content.len())];
            // With a checksum, as the tool does it.
            let mut context = zstd_safe::CCtx::create();
            context.set_parameter(zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
            let len = context.compress2(&mut packed[..], content).unwrap();
            packed.truncate(len);
            packed
        }
        other => panic!("nothing here packs {other}"),
    }
}

/// A payload: the stream, and its content's size behind it.
pub fn payload(compression: Compression, content: &[u8]) -> Vec<u8> {
    let mut payload = stream(compression, content);
    if compression != Compression::Gzip {
        payload.extend((content.len() as u32).to_le_bytes());
    }
    payload
}

/// What a test's bzImage calls itself.
pub const VERSION: &str = "6.1.0-test (someone@somewhere) #1 SMP";

/// A bzImage around a payload, of protocol 2.15.
pub fn bzimage(payload: &[u8], init_size: u32) -> Vec<u8> {
    const SETUP: usize = 2 * 512;
    const HEAD: usize = 0x2cc;
    let protected = (HEAD + payload.len()).next_multiple_of(16);
    let mut image = vec![0; SETUP + protected];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]); // setup_sects
    put(0x1f4, &(protected as u32 / 16).to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x200, &[0xeb, 0x6a]); // jump over the header
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes()); // version
    put(0x20e, &0x100_u16.to_le_bytes()); // kernel_version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x236, &0x7f_u16.to_le_bytes()); // xloadflags
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x248, &(HEAD as u32).to_le_bytes()); // payload_offset
    put(0x24c, &(payload.len() as u32).to_le_bytes()); // payload_length
    put(0x258, &KERNEL_AT.to_le_bytes()); // pref_address
    put(0x260, &init_size.to_le_bytes());
    put(0x300, VERSION.as_bytes());
    put(SETUP + HEAD, payload);
    image
}
