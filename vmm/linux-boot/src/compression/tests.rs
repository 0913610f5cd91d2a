use proptest::prelude::*;

use super::*;
use crate::fixture::{PACKED, stream};

fn unpack(compression: Compression, input: &[u8], room: usize) -> Result<Vec<u8>, UnpackError> {
    let mut output = vec![0xee; room];
    let len = compression.unpack(input, &mut output)?;
    output.truncate(len);
    Ok(output)
}

/// Content in which every compression finds something and not everything.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = (prop::collection::vec(any::<u8>(), 1..40), 1_usize..200);
    prop::collection::vec(piece, 0..40)
        .prop_map(|pieces| pieces.into_iter().flat_map(|(bytes, times)| bytes.repeat(times)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_packed_comes_back(content in content(), spare in 0_usize..100) {
        for compression in PACKED {
            let packed = stream(compression, &content);
            prop_assert_eq!(Compression::of(&packed), Some(compression));
            let unpacked = unpack(compression, &packed, content.len() + spare);
            prop_assert_eq!(unpacked.as_ref(), Ok(&content), "{}", compression);
        }
    }

    #[test]
    fn a_buffer_too_small_is_full_and_nothing_else(content in content(), missing in 1_usize..3000) {
        prop_assume!(!content.is_empty());
        for compression in PACKED {
            let packed = stream(compression, &content);
            let failure = unpack(compression, &packed, content.len().saturating_sub(missing)).unwrap_err();
            prop_assert_eq!(failure.fault, UnpackFault::Full, "{}", compression);
            prop_assert!(failure.at <= packed.len());
        }
    }

    #[test]
    fn a_damaged_stream_never_panics(content in content(), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        for compression in PACKED {
            let mut packed = stream(compression, &content);
            let at = at.index(packed.len());
            packed[at] ^= 1_u8 << bit;
            if let Ok(unpacked) = unpack(compression, &packed, content.len()) {
                prop_assert!(unpacked.len() <= content.len());
            }
        }
    }

    #[test]
    fn noise_behind_a_magic_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
        let magics: [&[u8]; 4] =
            [&[0x1f, 0x8b, 8, 0], &[0xfd, b'7', b'z', b'X', b'Z', 0, 0, 1], &LZ4_MAGIC, &[0x28, 0xb5, 0x2f, 0xfd]];
        for (compression, magic) in PACKED.into_iter().zip(magics) {
            let input = [magic, &noise].concat();
            let _ = unpack(compression, &input, 1000);
        }
    }
}

#[test]
fn every_truncation_is_an_error_inside_of_what_is_left() {
    let content: Vec<u8> = (0..6000_u32).flat_map(|at| (at / 7).to_le_bytes()).collect();
    for compression in PACKED {
        let packed = stream(compression, &content);
        for cut in 0..packed.len() {
            match unpack(compression, &packed[..cut], content.len()) {
                // A legacy LZ4 frame may end after any block.
                Ok(unpacked) => assert!(compression == Compression::Lz4 && cut <= 4 && unpacked.is_empty()),
                Err(failure) => {
                    assert!(failure.at <= cut, "{compression} cut at {cut}: {failure:?}");
                    assert_ne!(failure.fault, UnpackFault::Full, "{compression} cut at {cut}");
                }
            }
        }
    }
}

#[test]
fn several_lz4_blocks_are_put_together() {
    let content: Vec<u8> = (0..(17 << 20) / 4_u32).flat_map(|at| (at / 1000).to_le_bytes()).collect();
    let packed = stream(Compression::Lz4, &content);
    assert!(unpack(Compression::Lz4, &packed, content.len()).as_ref() == Ok(&content));
    // A second frame's magic may stand between two blocks.
    let first = 8 + u32::from_le_bytes(packed[4..8].try_into().unwrap()) as usize;
    let joined = [&packed[..first], &LZ4_MAGIC, &packed[first..]].concat();
    assert!(unpack(Compression::Lz4, &joined, content.len()).as_ref() == Ok(&content));
    // A block that claims more bytes than there are.
    let mut liar = packed;
    liar[4..8].fill(0xff);
    assert_eq!(unpack(Compression::Lz4, &liar, content.len()).unwrap_err().fault, UnpackFault::Truncated);
}

#[test]
fn what_follows_a_stream_is_not_looked_at() {
    for compression in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
        let packed = [&stream(compression, b"kernel")[..], b"signature"].concat();
        assert_eq!(unpack(compression, &packed, 100).as_deref(), Ok(&b"kernel"[..]), "{compression}");
    }
}

#[test]
fn a_damaged_stream_says_where() {
    let content: Vec<u8> = (0..100_000_u32).flat_map(|at| (at.wrapping_mul(at) / 3).to_le_bytes()).collect();
    for compression in PACKED {
        let mut packed = stream(compression, &content);
        assert!(compression != Compression::Xz || packed.len() > 2 * XZ_STEP);
        let middle = packed.len() / 2;
        packed[middle..middle + 16].fill(0xff);
        if let Err(failure) = unpack(compression, &packed, content.len()) {
            assert!(failure.at > 0, "{compression}: {failure:?}");
        } else {
            assert_eq!(compression, Compression::Lz4, "only LZ4 blocks have no checksum");
        }
    }
}

#[test]
fn an_xz_stream_cannot_ask_for_a_gigabyte_of_dictionary() {
    // 0x24 stands for 1 GiB.
    let packed = with_dictionary(stream(Compression::Xz, b"kernel"), 0x24);
    let failure = unpack(Compression::Xz, &packed, 100).unwrap_err();
    assert!(matches!(&failure.fault, UnpackFault::Corrupt(why) if why.contains("1073741824")), "{failure:?}");
}

/// A stream whose LZMA2 filter has this property. The block header has a checksum.
fn with_dictionary(mut packed: Vec<u8>, property: u8) -> Vec<u8> {
    let filter = packed.windows(2).position(|bytes| bytes == [0x21, 0x01]).unwrap();
    packed[filter + 2] = property;
    let len = usize::from(packed[12]) * 4;
    let sum = crc32(&packed[12..12 + len]);
    packed[12 + len..16 + len].copy_from_slice(&sum.to_le_bytes());
    packed
}

/// What an allocator refuses is an error, with the size.
#[test]
fn memory_that_is_not_there_is_an_error() {
    assert_eq!(zeroed(0), Ok(Vec::new()));
    assert_eq!(zeroed(5), Ok(vec![0; 5]));
    for len in [1 << 62, usize::MAX] {
        assert_eq!(zeroed(len), Err(UnpackFault::NoMemory(len as u64)));
    }
}

/// More than is tried first, and no more than is allowed.
#[test]
fn an_xz_stream_gets_the_dictionary_that_it_asks_for() {
    // 0x18 stands for 16 MiB.
    let packed = with_dictionary(stream(Compression::Xz, b"kernel"), 0x18);
    assert_eq!(unpack(Compression::Xz, &packed, 100).as_deref(), Ok(&b"kernel"[..]));
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 },
        )
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[test]
fn the_others_are_known_by_name_only() {
    for (magic, name) in
        [(&b"BZh91AY"[..], "bzip2"), (&[0x5d, 0, 0, 0x80, 0], "lzma"), (b"\x89LZO\0\r\n", "LZO")]
    {
        let compression = Compression::of(magic).unwrap();
        assert_eq!(compression.to_string(), name);
        assert_eq!(unpack(compression, magic, 10).unwrap_err().fault, UnpackFault::Unsupported);
    }
    assert_eq!(Compression::of(b""), None);
    assert_eq!(Compression::of(b"\x1f"), None);
}
