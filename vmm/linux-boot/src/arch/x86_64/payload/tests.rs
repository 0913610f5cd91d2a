use super::super::fixture::{PACKED, kernel, payload, stream};
use super::*;

#[test]
fn every_compression_gives_back_the_kernel() {
    let kernel = kernel();
    for compression in PACKED {
        assert!(unpack(&payload(compression, &kernel), LARGEST).as_ref() == Ok(&kernel), "{compression}");
    }
    let stored = [&kernel[..], &(kernel.len() as u32).to_le_bytes()].concat();
    assert!(unpack(&stored, LARGEST).as_ref() == Ok(&kernel), "uncompressed");
}

#[test]
fn a_bomb_ends_at_its_claim() {
    let zeroes = vec![0; 40 << 20];
    for compression in PACKED {
        let mut bomb = stream(compression, &zeroes);
        let claim = 4096_u32;
        if compression == Compression::Gzip {
            // gzip's own size is the claim; its decoder checks it at the end, which is never reached.
            bomb.truncate(bomb.len() - 4);
        }
        bomb.extend(claim.to_le_bytes());
        let error = unpack(&bomb, LARGEST).unwrap_err();
        assert!(matches!(error, PayloadError::Bomb { claim: 4096, .. }), "{compression}: {error}");
    }
}

#[test]
fn a_claim_is_held_against_what_is_possible() {
    for compression in PACKED {
        let honest = payload(compression, &vec![0; 1 << 20]);
        let error = unpack(&honest, (1 << 20) - 1).unwrap_err();
        assert_eq!(error, PayloadError::TooLarge { claim: 1 << 20, limit: (1 << 20) - 1 });
        let mut liar = honest;
        let end = liar.len() - 4;
        liar[end..].fill(0xff);
        let error = unpack(&liar, u64::MAX).unwrap_err();
        assert_eq!(error, PayloadError::TooLarge { claim: u32::MAX.into(), limit: LARGEST });
    }
}

#[test]
fn less_than_claimed_is_refused() {
    for compression in [Compression::Xz, Compression::Lz4, Compression::Zstd] {
        let mut payload = stream(compression, b"too short");
        payload.extend(100_u32.to_le_bytes());
        assert_eq!(unpack(&payload, LARGEST), Err(PayloadError::Short { compression, claim: 100, got: 9 }));
    }
}

#[test]
fn a_truncated_or_damaged_payload_says_compression_and_place() {
    for compression in [Compression::Xz, Compression::Lz4, Compression::Zstd] {
        let kernel = kernel();
        let whole = stream(compression, &kernel);
        let cut = [&whole[..whole.len() / 2], &(kernel.len() as u32).to_le_bytes()].concat();
        let message = unpack(&cut, LARGEST).unwrap_err().to_string();
        assert!(message.contains(&compression.to_string()) && message.contains("truncated"), "{message}");
        let mut damaged = payload(compression, &kernel);
        // The first thing after each magic.
        damaged[6..14].fill(0xff);
        let message = unpack(&damaged, LARGEST).unwrap_err().to_string();
        assert!(message.contains(&compression.to_string()) && message.contains("byte"), "{message}");
    }
}

#[test]
fn every_length_of_a_payload_is_survived() {
    for compression in PACKED {
        let whole = payload(compression, &kernel()[..20_000]);
        for cut in 0..whole.len() {
            assert!(unpack(&whole[..cut], 1 << 20).is_err(), "{compression} cut at {cut}");
        }
    }
}

#[test]
fn what_nothing_here_unpacks_is_named() {
    let message = unpack(b"BZh91AY&SY\0\0\x10\0", LARGEST).unwrap_err().to_string();
    assert!(message.contains("bzip2") && message.contains("--in-guest-decompression"), "{message}");
    assert_eq!(unpack(b"whatever", LARGEST), Err(PayloadError::Unknown(b"whatever".to_vec())));
    assert_eq!(unpack(b"", LARGEST), Err(PayloadError::Unknown(Vec::new())));
}
