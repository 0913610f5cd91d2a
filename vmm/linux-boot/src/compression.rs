//! The compressions that kernels and modules come in: told apart by their magic, unpacked into a buffer.
//!
//! Every decoder writes into a buffer of the caller's and stops at its end, so that no file decides how much
//! memory it takes. Memory that is not there ([`zeroed`]) is an error, never the end of this program.

use std::alloc::{Layout, alloc_zeroed};
use std::io::Read;

use xz4rust::{XzDecoder, XzError};
use zstd_safe::{DCtx, InBuffer, OutBuffer};

/// The largest dictionary of an xz stream. `xz -9` takes 64 MiB, the kernel's own script up to 128.
const XZ_DICTIONARY_MAX: usize = 128 << 20;
/// What is tried first. Which size a stream asks for is known when its decoder has read that far.
const XZ_DICTIONARY: usize = 1 << 20;
/// What the xz decoder is given at once: so exactly an error says where it is.
const XZ_STEP: usize = 16 << 10;
/// Every block of the LZ4 legacy format but the last unpacks to this.
const LZ4_BLOCK: usize = 8 << 20;
/// The LZ4 legacy format's magic.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// A compression, as `CONFIG_KERNEL_…` knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Compression {
    /// gzip.
    Gzip,
    /// xz, with the x86 BCJ filter where it was used.
    Xz,
    /// LZ4 in its legacy frame.
    #[strum(to_string = "LZ4")]
    Lz4,
    /// Zstandard.
    Zstd,
    /// bzip2. Not unpacked.
    Bzip2,
    /// The old LZMA format. Not unpacked.
    Lzma,
    /// LZO. Not unpacked.
    #[strum(to_string = "LZO")]
    Lzo,
}

/// What went wrong while unpacking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnpackFault {
    /// The input ended too early.
    Truncated,
    /// The output does not fit into the buffer.
    Full,
    /// The input is damaged, as its decoder says.
    Corrupt(String),
    /// Nothing here unpacks this.
    Unsupported,
    /// So many bytes of memory are not to be had.
    NoMemory(u64),
}

/// Where and what. `at` is the input's offset, up to where the decoder had read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackError {
    /// Bytes of input that had been read.
    pub at: usize,
    /// What went wrong.
    pub fault: UnpackFault,
}

impl Compression {
    /// The compression whose magic `bytes` begin with.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Compression); 8] = [
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&LZ4_MAGIC, Compression::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (b"BZh", Compression::Bzip2),
            (&[0x5d, 0, 0], Compression::Lzma),
            (&[0x89, b'L', b'Z', b'O', 0], Compression::Lzo),
            // The LZ4 frame of the `lz4` tool: told here to be named; a kernel's payload never has it.
            (&[0x04, 0x22, 0x4d, 0x18], Compression::Lz4),
        ];
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, compression)| compression)
    }

    /// The command that unpacks such a file.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Gzip => "gzip -d",
            Self::Xz => "xz -d",
            Self::Lz4 => "lz4 -d",
            Self::Zstd => "zstd -d",
            Self::Bzip2 => "bzip2 -d",
            Self::Lzma => "xz -d --format=lzma",
            Self::Lzo => "lzop -d",
        }
    }

    /// Unpacks `input` to the start of `output` and says how many bytes that were. What follows the end of a
    /// compressed stream is not looked at; LZ4's legacy frame has no end but the input's.
    ///
    /// # Errors
    /// [`UnpackError`]; output that does not fit is one.
    pub fn unpack(self, input: &[u8], output: &mut [u8]) -> Result<usize, UnpackError> {
        match self {
            Self::Gzip => gzip(input, output),
            Self::Xz => xz(input, output),
            Self::Lz4 => lz4(input, output),
            Self::Zstd => zstd(input, output),
            Self::Bzip2 | Self::Lzma | Self::Lzo => {
                Err(UnpackError { at: 0, fault: UnpackFault::Unsupported })
            }
        }
    }
}

fn gzip(input: &[u8], output: &mut [u8]) -> Result<usize, UnpackError> {
    let mut decoder = flate2::bufread::GzDecoder::new(input);
    let mut written = 0;
    loop {
        // A full buffer still needs one more read: the stream may end here, and its checksum is still to come.
        let mut probe = [0];
        let full = written == output.len();
        let room = if full { &mut probe[..] } else { &mut output[written..] };
        let read = decoder.read(room);
        let at = input.len() - decoder.get_ref().len();
        match read {
            Ok(0) => return Ok(written),
            Ok(_) if full => return Err(UnpackError { at, fault: UnpackFault::Full }),
            Ok(count) => written += count,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(UnpackError { at, fault: UnpackFault::Truncated });
            }
            Err(error) => return Err(UnpackError { at, fault: UnpackFault::Corrupt(error.to_string()) }),
        }
    }
}

/// Zeroes, if there is memory for them. The kernel makes each page as it is first touched: a false claim takes none.
pub fn zeroed(len: usize) -> Result<Vec<u8>, UnpackFault> {
    let none = UnpackFault::NoMemory(len as u64);
    if len == 0 {
        return Ok(Vec::new());
    }
    let Ok(layout) = Layout::array::<u8>(len) else { return Err(none) };
    // SAFETY: the layout is of at least one byte.
    let start = unsafe { alloc_zeroed(layout) };
    if start.is_null() {
        return Err(none);
    }
    // SAFETY: the global allocator gave `start` for `len` bytes with the alignment of a byte, all of them 0.
    Ok(unsafe { Vec::from_raw_parts(start, len, len) })
}

fn xz(input: &[u8], output: &mut [u8]) -> Result<usize, UnpackError> {
    let mut dictionary = XZ_DICTIONARY;
    // Each time with more: a stream of several blocks may ask again.
    loop {
        match xz_within(dictionary, input, output) {
            Err((at, XzError::DictionaryTooLarge(wanted))) if wanted > XZ_DICTIONARY_MAX as u64 => {
                let why = format!(
                    "it asks for a dictionary of {wanted} bytes, and at most {XZ_DICTIONARY_MAX} are possible here"
                );
                return Err(UnpackError { at, fault: UnpackFault::Corrupt(why) });
            }
            Err((_, XzError::DictionaryTooLarge(wanted))) if wanted > dictionary as u64 => {
                dictionary = wanted as usize;
            }
            Err((at, XzError::NeedsLargerInputBuffer)) => {
                return Err(UnpackError { at, fault: UnpackFault::Truncated });
            }
            Err((at, error)) => {
                return Err(UnpackError { at, fault: UnpackFault::Corrupt(error.to_string()) });
            }
            Ok(done) => return done,
        }
    }
}

/// The same with a dictionary that does not grow: the decoder would have more of it without asking whether there is any.
/// Its own errors come with where they were.
fn xz_within(
    dictionary: usize,
    input: &[u8],
    output: &mut [u8],
) -> Result<Result<usize, UnpackError>, (usize, XzError)> {
    let memory = match zeroed(dictionary) {
        Ok(memory) => memory,
        Err(fault) => return Ok(Err(UnpackError { at: 0, fault })),
    };
    let mut decoder = XzDecoder::in_heap_with_alloc_dict(memory, dictionary);
    let (mut read, mut written) = (0, 0);
    loop {
        let mut probe = [0];
        let full = written == output.len();
        let room = if full { &mut probe[..] } else { &mut output[written..] };
        let step = decoder.decode(&input[read..input.len().min(read + XZ_STEP)], room);
        let step = step.map_err(|error| (read, error))?;
        read += step.input_consumed();
        if full && step.output_produced() > 0 {
            return Ok(Err(UnpackError { at: read, fault: UnpackFault::Full }));
        }
        written += step.output_produced();
        if step.is_end_of_stream() {
            return Ok(Ok(written));
        }
        if !step.made_progress() {
            return Ok(Err(UnpackError { at: read, fault: UnpackFault::Truncated }));
        }
    }
}

fn lz4(input: &[u8], output: &mut [u8]) -> Result<usize, UnpackError> {
    use lz4_flex::block::{DecompressError, decompress_into};
    if !input.starts_with(&LZ4_MAGIC) {
        let why = "not the legacy frame that kernels use".to_owned();
        return Err(UnpackError { at: 0, fault: UnpackFault::Corrupt(why) });
    }
    let (mut read, mut written) = (LZ4_MAGIC.len(), 0);
    while read < input.len() {
        let Some(&size) = input[read..].first_chunk::<4>() else {
            return Err(UnpackError { at: read, fault: UnpackFault::Truncated });
        };
        // The tool may write one frame after the other.
        if size == LZ4_MAGIC {
            read += size.len();
            continue;
        }
        let start = read + size.len();
        let end = start.checked_add(u32::from_le_bytes(size) as usize);
        let Some(block) = end.and_then(|end| input.get(start..end)) else {
            return Err(UnpackError { at: read, fault: UnpackFault::Truncated });
        };
        let room = (output.len() - written).min(LZ4_BLOCK);
        written += decompress_into(block, &mut output[written..written + room]).map_err(|error| {
            let too_small = matches!(error, DecompressError::OutputTooSmall { .. });
            let fault = if too_small && room < LZ4_BLOCK {
                UnpackFault::Full
            } else {
                UnpackFault::Corrupt(error.to_string())
            };
            UnpackError { at: read, fault }
        })?;
        read = start + block.len();
    }
    Ok(written)
}

fn zstd(input: &[u8], output: &mut [u8]) -> Result<usize, UnpackError> {
    // Without a window of its own (128 MiB for a kernel): what was unpacked lies in the output. But in one go
    // zstd takes the input to end with the frame, and of an error it does not say where.
    let frame = zstd_safe::find_frame_compressed_size(input).ok().and_then(|len| input.get(..len));
    if let Some(Ok(written)) = frame.map(|frame| zstd_safe::decompress(output, frame)) {
        return Ok(written);
    }
    Err(locate_zstd_error(input, output.len()))
}

/// Unpacks once more, in steps and to nowhere, for the place of the error and its kind.
fn locate_zstd_error(input: &[u8], room: usize) -> UnpackError {
    let Some(mut context) = DCtx::try_create() else {
        return UnpackError { at: 0, fault: UnpackFault::Corrupt("no memory for a decoder".to_owned()) };
    };
    let mut scratch = vec![0; DCtx::out_size()];
    let mut source = InBuffer::around(input);
    let mut written = 0_usize;
    loop {
        let before = source.pos();
        let mut sink = OutBuffer::around(&mut scratch[..]);
        let step = context.decompress_stream(&mut sink, &mut source);
        let (produced, at) = (sink.pos(), source.pos());
        written = written.saturating_add(produced);
        let fault = match step {
            Err(code) => UnpackFault::Corrupt(zstd_safe::get_error_name(code).to_owned()),
            Ok(_) if written > room => UnpackFault::Full,
            Ok(0) => UnpackFault::Corrupt("it unpacks in steps and not in one go".to_owned()),
            Ok(_) if at == before && produced == 0 => UnpackFault::Truncated,
            Ok(_) => continue,
        };
        return UnpackError { at, fault };
    }
}

#[cfg(test)]
mod tests;
