//! Frames: the header's rules, writing one, and finding them in a stream that arrives in any pieces.

use core::fmt;

use crate::layout::MAX_VCPUS;

/// The first four bytes of every frame: "zlnk".
pub const MAGIC: u32 = u32::from_le_bytes(*b"zlnk");
/// Version of the frames and messages.
pub const VERSION: u16 = 1;
/// Bytes before the payload.
pub const HEADER_BYTES: usize = 14;
/// The longest payload. What can be longer is cut or split by its sender.
pub const MAX_PAYLOAD: usize = 8192;

/// Room for any frame.
pub type FrameBuffer = [u8; HEADER_BYTES + MAX_PAYLOAD];

/// What arrived, or was to be sent, is no frame of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum LinkError {
    Magic(u32),
    Version(u16),
    TooLong(u64),
    Kind(u16),
    Length { kind: u16, len: usize },
    Text(u16),
    Vcpu { kind: u16, vcpu: u16 },
    Value { kind: u16, value: u64 },
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Magic(found) => write!(f, "a frame begins with {found:#010x} in place of {MAGIC:#010x}"),
            Self::Version(found) => write!(f, "a frame has version {found} in place of {VERSION}"),
            Self::TooLong(len) => write!(f, "a payload of {len} bytes is longer than {MAX_PAYLOAD}"),
            Self::Kind(kind) => write!(f, "no message of kind {kind:#x} goes this way"),
            Self::Length { kind, len } => write!(f, "a message of kind {kind:#x} cannot have {len} bytes"),
            Self::Text(kind) => write!(f, "the text in a message of kind {kind:#x} is not UTF-8"),
            Self::Vcpu { kind, vcpu } => write!(f, "a message of kind {kind:#x} cannot be about vCPU {vcpu}"),
            Self::Value { kind, value } => {
                write!(f, "the value {value:#x} means nothing in a message of kind {kind:#x}")
            }
        }
    }
}

impl core::error::Error for LinkError {}

/// One frame whose header has been checked; its payload has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub kind: u16,
    /// Which vCPU it is about, below [`MAX_VCPUS`]; 0 if about none.
    pub vcpu: u16,
    /// What it says.
    pub payload: &'a [u8],
}

/// Writes one frame's fields one after the other.
pub(super) struct Encoder<'b> {
    buffer: &'b mut FrameBuffer,
    /// Bytes the frame would have, however long.
    len: usize,
}

impl<'b> Encoder<'b> {
    pub(super) fn new(buffer: &'b mut FrameBuffer, kind: u16, vcpu: u16) -> Self {
        let encoder = Self { buffer, len: 0 };
        encoder.bytes(&MAGIC.to_le_bytes()).bytes(&VERSION.to_le_bytes()).u16(kind).u16(vcpu).u32(0)
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        let end = self.len.saturating_add(bytes.len());
        if let Some(room) = self.buffer.get_mut(self.len..end) {
            room.copy_from_slice(bytes);
        }
        self.len = end;
        self
    }
    pub(super) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(super) fn finish(self) -> Result<&'b [u8], LinkError> {
        let payload = self.len - HEADER_BYTES;
        let len = u32::try_from(payload).ok().filter(|_| payload <= MAX_PAYLOAD);
        let len = len.ok_or(LinkError::TooLong(payload as u64))?;
        self.buffer[10..HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
        Ok(&self.buffer[..self.len])
    }
}

/// Reads one payload's fields one after the other.
pub(super) struct Fields<'a> {
    frame: Frame<'a>,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(frame: Frame<'a>) -> Self {
        Self { frame, rest: frame.payload }
    }

    pub(super) fn wrong_length(&self) -> LinkError {
        LinkError::Length { kind: self.frame.kind, len: self.frame.payload.len() }
    }
    pub(super) fn wrong_value(&self, value: u64) -> LinkError {
        LinkError::Value { kind: self.frame.kind, value }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LinkError> {
        let (first, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.wrong_length())?;
        self.rest = rest;
        Ok(*first)
    }
    pub(super) fn u16(&mut self) -> Result<u16, LinkError> {
        self.array().map(u16::from_le_bytes)
    }
    pub(super) fn u32(&mut self) -> Result<u32, LinkError> {
        self.array().map(u32::from_le_bytes)
    }
    pub(super) fn u64(&mut self) -> Result<u64, LinkError> {
        self.array().map(u64::from_le_bytes)
    }
    /// Everything that is left.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.rest)
    }
    /// Everything that is left, as text.
    pub(super) fn text(&mut self) -> Result<&'a str, LinkError> {
        core::str::from_utf8(self.bytes()).map_err(|_| LinkError::Text(self.frame.kind))
    }
    /// Whether all has been read.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Finds frames in a stream that arrives in any pieces.
pub struct Decoder {
    buffer: FrameBuffer,
    /// Bytes of the frame in progress that are there.
    filled: usize,
    failed: Option<LinkError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// At the beginning of a stream.
    pub const fn new() -> Self {
        Self { buffer: [0; HEADER_BYTES + MAX_PAYLOAD], filled: 0, failed: None }
    }

    /// Takes bytes off the front of `input` until a frame is whole; `None` when they are used up before.
    ///
    /// # Errors
    /// What a header's rules forbid. The stream is lost: every later call returns the same.
    pub fn next<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<Frame<'a>>, LinkError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if !self.fill(HEADER_BYTES, input) {
            return Ok(None);
        }
        let (kind, vcpu, len) = self.header().inspect_err(|&error| self.failed = Some(error))?;
        if !self.fill(HEADER_BYTES + len, input) {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(Frame { kind, vcpu, payload: &self.buffer[HEADER_BYTES..HEADER_BYTES + len] }))
    }

    /// Fills the buffer up to `wanted` bytes. Returns whether it holds that many.
    fn fill(&mut self, wanted: usize, input: &mut &[u8]) -> bool {
        let count = wanted.saturating_sub(self.filled).min(input.len());
        let (taken, rest) = input.split_at(count);
        self.buffer[self.filled..self.filled + count].copy_from_slice(taken);
        self.filled += count;
        *input = rest;
        self.filled >= wanted
    }

    fn header(&self) -> Result<(u16, u16, usize), LinkError> {
        let payload = &self.buffer[..HEADER_BYTES];
        let mut fields = Fields::new(Frame { kind: 0, vcpu: 0, payload });
        let (magic, version) = (fields.u32()?, fields.u16()?);
        let (kind, vcpu, len) = (fields.u16()?, fields.u16()?, fields.u32()?);
        if magic != MAGIC {
            return Err(LinkError::Magic(magic));
        }
        if version != VERSION {
            return Err(LinkError::Version(version));
        }
        if u32::from(vcpu) >= MAX_VCPUS {
            return Err(LinkError::Vcpu { kind, vcpu });
        }
        if len as usize > MAX_PAYLOAD {
            return Err(LinkError::TooLong(len.into()));
        }
        Ok((kind, vcpu, len as usize))
    }
}
