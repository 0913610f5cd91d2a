//! A bzImage's payload: an ELF kernel, compressed, and behind it its size.
//!
//! ```text
//! │ compressed stream │ size, 4 bytes │      gzip's own trailer ends with that size, the others get it appended
//! ```
//!
//! The size is the image's own claim, and the buffer's: a stream that unpacks to more, or to less, is refused.
//! The claim itself is held against what the guest has, and against [`LARGEST`].

use crate::compression::{Compression, UnpackError, UnpackFault, zeroed};
use program::exit::{Class, Classified};

/// The largest kernel unpacked. One with everything in it has some 100 MiB.
pub const LARGEST: u64 = 512 << 20;
/// Bytes of the size at the end.
const SIZE_LEN: usize = 4;

/// Why a payload could not be unpacked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum PayloadError {
    #[error("the kernel's payload is in no known compression (it begins with {0:02x?})")]
    Unknown(Vec<u8>),
    #[error(
        "the kernel's payload is compressed with {0}, which is not unpacked here: boot it with \
         --in-guest-decompression, or take a kernel with gzip, xz, LZ4 or zstd"
    )]
    Unsupported(Compression),
    #[error("the kernel claims to unpack to {claim} bytes, and at most {limit} are possible here")]
    TooLarge { claim: u64, limit: u64 },
    #[error(
        "the kernel's {compression} payload unpacks to more than the {claim} bytes it claims, at its byte {at}"
    )]
    Bomb { compression: Compression, claim: u64, at: usize },
    #[error("the kernel's {compression} payload unpacks to {got} bytes instead of the {claim} it claims")]
    Short { compression: Compression, claim: u64, got: u64 },
    #[error(
        "the kernel's {compression} payload is truncated: it ends at byte {at} in the middle of the stream"
    )]
    Truncated { compression: Compression, at: usize },
    #[error("the kernel's {compression} payload is damaged at byte {at}: {why}")]
    Corrupt { compression: Compression, at: usize, why: String },
    #[error(
        "no memory for {bytes} bytes, to unpack the kernel's payload: free memory on the host, or raise `ulimit -v`"
    )]
    NoMemory { bytes: u64 },
}

impl Classified for PayloadError {
    fn class(&self) -> Class {
        match self {
            Self::NoMemory { .. } => Class::Host,
            _ => Class::Mistake,
        }
    }
}

/// Unpacks a payload into at most `limit` bytes, and never more than [`LARGEST`].
pub fn unpack(payload: &[u8], limit: u64) -> Result<Vec<u8>, PayloadError> {
    let limit = limit.min(LARGEST);
    let stored = payload.starts_with(b"\x7fELF"); // CONFIG_KERNEL_UNCOMPRESSED
    let compression = Compression::of(payload);
    let (Some((stream, size)), true) =
        (payload.split_last_chunk::<SIZE_LEN>(), stored || compression.is_some())
    else {
        return Err(PayloadError::Unknown(payload[..payload.len().min(8)].to_vec()));
    };
    if let Some(unsupported @ (Compression::Bzip2 | Compression::Lzma | Compression::Lzo)) = compression {
        return Err(PayloadError::Unsupported(unsupported));
    }
    let claim = u64::from(u32::from_le_bytes(*size));
    if claim > limit {
        return Err(PayloadError::TooLarge { claim, limit });
    }
    let Some(compression) = compression else {
        let mut copy = room(stream.len() as u64)?;
        copy.copy_from_slice(stream);
        return Ok(copy);
    };
    let mut unpacked = room(claim)?;
    let stream = if compression == Compression::Gzip { payload } else { stream };
    let got = compression.unpack(stream, &mut unpacked).map_err(|UnpackError { at, fault }| match fault {
        UnpackFault::Truncated => PayloadError::Truncated { compression, at },
        UnpackFault::Full => PayloadError::Bomb { compression, claim, at },
        UnpackFault::Corrupt(why) => PayloadError::Corrupt { compression, at, why },
        UnpackFault::Unsupported => PayloadError::Unsupported(compression),
        UnpackFault::NoMemory(bytes) => PayloadError::NoMemory { bytes },
    })? as u64;
    if got != claim {
        return Err(PayloadError::Short { compression, claim, got });
    }
    Ok(unpacked)
}

/// Zeroes for what is unpacked.
fn room(bytes: u64) -> Result<Vec<u8>, PayloadError> {
    zeroed(bytes as usize).map_err(|_| PayloadError::NoMemory { bytes })
}

#[cfg(test)]
mod tests;
