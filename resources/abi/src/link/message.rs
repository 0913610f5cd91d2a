//! The messages, each way.

use super::frame::{Encoder, Fields, Frame, FrameBuffer, LinkError};
use crate::layout::MAX_VCPUS;
use crate::order::RawOrder;

/// How the guest's page tables map the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Pages {
    /// By pages of 4 KiB.
    Small = 0,
    /// By transparent huge pages of 2 MiB, as far as the guest's kernel has them.
    Huge = 1,
}

/// What the VMM asks of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields' names and types say what they are")]
pub enum ToAgent<'a> {
    /// Make the memory under test (`bytes`: a multiple of 2 MiB, not 0) and the control areas, in place of those made before.
    MapArena { bytes: u64, pages: Pages },
    /// Carry out an order, on logical addresses: the arena at `ARENA_GPA`, areas at `area_gpa(vcpu)`.
    Order { vcpu: u16, order: RawOrder },
    /// Run `sh -c command`.
    Shell { command: &'a str },
    /// Tell the guest's own counters, and whether the arena is still where it was.
    Counters,
}

/// The requests of [`ToAgent`] that are answered, by their kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are named as the requests")]
#[repr(u16)]
pub enum Request {
    MapArena = kind::MAP_ARENA,
    Shell = kind::SHELL,
    Counters = kind::COUNTERS,
}

/// Where the agent has put things, by real guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Where the arena begins: one contiguous range, 2 MiB aligned.
    pub arena_gpa: u64,
    /// How many bytes of it the guest maps by huge pages.
    pub huge_bytes: u64,
    /// Where each vCPU's control area lies: 2 MiB, 2 MiB aligned.
    pub area_gpas: AreaGpas,
}

/// One address for each vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AreaGpas {
    gpas: [u64; MAX_VCPUS as usize],
    count: usize,
}

impl AreaGpas {
    /// Adds the next vCPU's address. Returns whether there was room.
    pub fn push(&mut self, gpa: u64) -> bool {
        let Some(slot) = self.gpas.get_mut(self.count) else { return false };
        *slot = gpa;
        self.count += 1;
        true
    }
    /// The addresses, by vCPU.
    pub fn as_slice(&self) -> &[u64] {
        &self.gpas[..self.count]
    }
}

/// What the agent tells the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack, where there may be no heap")]
#[expect(missing_docs, reason = "the messages' descriptions say what each field is")]
pub enum FromAgent<'a> {
    /// The first message: the agent is up. [`super::ABI_VERSION`] that it was built with, vCPUs that are online in the guest,
    /// and the kernel's release, as `uname -r` has it.
    Hello { abi: u32, vcpus: u16, release: &'a str },
    /// The answer to [`ToAgent::MapArena`].
    Mapped(Mapped),
    /// The vCPU's order came to its end; its outcome is in the control area.
    Done { vcpu: u16 },
    /// What the command wrote, on either of its outputs; not necessarily whole lines.
    ShellOutput { bytes: &'a [u8] },
    /// The command has ended, with this status of `wait`.
    ShellExited { status: i32 },
    /// The answer to [`ToAgent::Counters`].
    CountersAre {
        /// Pages of the arena and the control areas that are no longer where [`Mapped`] said.
        moved_pages: u64,
        /// How many bytes of the arena the guest maps by huge pages now.
        huge_bytes: u64,
        /// Lines of the guest's `/proc` and `/sys`.
        text: &'a str,
    },
    /// Something the user may want to know, in one line.
    Log { text: &'a str },
    /// A request could not be met, for this reason; the agent lives on.
    Refused { request: Request, what: &'a str },
    /// The agent cannot go on, for this reason, and powers the guest off.
    Failed { what: &'a str },
}

mod kind {
    pub(super) const MAP_ARENA: u16 = 0x01;
    pub(super) const ORDER: u16 = 0x02;
    pub(super) const SHELL: u16 = 0x03;
    pub(super) const COUNTERS: u16 = 0x04;

    pub(super) const HELLO: u16 = 0x81;
    pub(super) const MAPPED: u16 = 0x82;
    pub(super) const DONE: u16 = 0x83;
    pub(super) const SHELL_OUTPUT: u16 = 0x84;
    pub(super) const SHELL_EXITED: u16 = 0x85;
    pub(super) const COUNTERS_ARE: u16 = 0x86;
    pub(super) const LOG: u16 = 0x87;
    pub(super) const REFUSED: u16 = 0x88;
    pub(super) const FAILED: u16 = 0x89;
}

impl<'a> ToAgent<'a> {
    /// The message as a frame in `buffer`.
    pub fn encode<'b>(&self, buffer: &'b mut FrameBuffer) -> Result<&'b [u8], LinkError> {
        match *self {
            Self::MapArena { bytes, pages } => {
                Encoder::new(buffer, kind::MAP_ARENA, 0).u64(bytes).u16(pages as u16)
            }
            Self::Order { vcpu, order } => order
                .words()
                .into_iter()
                .fold(Encoder::new(buffer, kind::ORDER, vcpu), |encoder, word| encoder.u64(word)),
            Self::Shell { command } => Encoder::new(buffer, kind::SHELL, 0).bytes(command.as_bytes()),
            Self::Counters => Encoder::new(buffer, kind::COUNTERS, 0),
        }
        .finish()
    }

    /// The message in `frame`.
    ///
    /// # Errors
    /// The frame is none that the VMM sends.
    pub fn decode(frame: Frame<'a>) -> Result<Self, LinkError> {
        let mut fields = Fields::new(frame);
        let message = match frame.kind {
            kind::MAP_ARENA => {
                let bytes = fields.u64()?;
                let pages = match fields.u16()? {
                    0 => Pages::Small,
                    1 => Pages::Huge,
                    other => return Err(fields.wrong_value(other.into())),
                };
                Self::MapArena { bytes, pages }
            }
            kind::ORDER => {
                let mut words = [0; RawOrder::WORDS];
                for word in &mut words {
                    *word = fields.u64()?;
                }
                Self::Order { vcpu: frame.vcpu, order: RawOrder::from_words(words) }
            }
            kind::SHELL => Self::Shell { command: fields.text()? },
            kind::COUNTERS => Self::Counters,
            other => return Err(LinkError::Kind(other)),
        };
        check_end(frame, &fields, matches!(message, Self::Order { .. }))?;
        Ok(message)
    }
}

impl<'a> FromAgent<'a> {
    /// The message as a frame in `buffer`.
    pub fn encode<'b>(&self, buffer: &'b mut FrameBuffer) -> Result<&'b [u8], LinkError> {
        match *self {
            Self::Hello { abi, vcpus, release } => {
                Encoder::new(buffer, kind::HELLO, 0).u32(abi).u16(vcpus).bytes(release.as_bytes())
            }
            Self::Mapped(Mapped { arena_gpa, huge_bytes, area_gpas }) => {
                let encoder = Encoder::new(buffer, kind::MAPPED, 0).u64(arena_gpa).u64(huge_bytes);
                area_gpas.as_slice().iter().fold(encoder, |encoder, &gpa| encoder.u64(gpa))
            }
            Self::Done { vcpu } => Encoder::new(buffer, kind::DONE, vcpu),
            Self::ShellOutput { bytes } => Encoder::new(buffer, kind::SHELL_OUTPUT, 0).bytes(bytes),
            Self::ShellExited { status } => {
                Encoder::new(buffer, kind::SHELL_EXITED, 0).u32(status.cast_unsigned())
            }
            Self::CountersAre { moved_pages, huge_bytes, text } => {
                Encoder::new(buffer, kind::COUNTERS_ARE, 0)
                    .u64(moved_pages)
                    .u64(huge_bytes)
                    .bytes(text.as_bytes())
            }
            Self::Log { text } => Encoder::new(buffer, kind::LOG, 0).bytes(text.as_bytes()),
            Self::Refused { request, what } => {
                Encoder::new(buffer, kind::REFUSED, 0).u16(request as u16).bytes(what.as_bytes())
            }
            Self::Failed { what } => Encoder::new(buffer, kind::FAILED, 0).bytes(what.as_bytes()),
        }
        .finish()
    }

    /// The message in `frame`.
    ///
    /// # Errors
    /// The frame is none that an agent sends.
    pub fn decode(frame: Frame<'a>) -> Result<Self, LinkError> {
        let mut fields = Fields::new(frame);
        let message = match frame.kind {
            kind::HELLO => Self::Hello { abi: fields.u32()?, vcpus: fields.u16()?, release: fields.text()? },
            kind::MAPPED => {
                let (arena_gpa, huge_bytes) = (fields.u64()?, fields.u64()?);
                let mut area_gpas = AreaGpas::default();
                while !fields.is_empty() {
                    if !area_gpas.push(fields.u64()?) {
                        return Err(fields.wrong_length());
                    }
                }
                Self::Mapped(Mapped { arena_gpa, huge_bytes, area_gpas })
            }
            kind::DONE => Self::Done { vcpu: frame.vcpu },
            kind::SHELL_OUTPUT => Self::ShellOutput { bytes: fields.bytes() },
            kind::SHELL_EXITED => Self::ShellExited { status: fields.u32()?.cast_signed() },
            kind::COUNTERS_ARE => Self::CountersAre {
                moved_pages: fields.u64()?,
                huge_bytes: fields.u64()?,
                text: fields.text()?,
            },
            kind::LOG => Self::Log { text: fields.text()? },
            kind::REFUSED => {
                let request = match fields.u16()? {
                    kind::MAP_ARENA => Request::MapArena,
                    kind::SHELL => Request::Shell,
                    kind::COUNTERS => Request::Counters,
                    other => return Err(fields.wrong_value(other.into())),
                };
                Self::Refused { request, what: fields.text()? }
            }
            kind::FAILED => Self::Failed { what: fields.text()? },
            other => return Err(LinkError::Kind(other)),
        };
        check_end(frame, &fields, matches!(message, Self::Done { .. }))?;
        Ok(message)
    }
}

/// A payload ends where its message does, and only a message about a vCPU names one.
fn check_end(frame: Frame<'_>, fields: &Fields<'_>, about_vcpu: bool) -> Result<(), LinkError> {
    if !fields.is_empty() {
        return Err(fields.wrong_length());
    }
    if frame.vcpu != 0 && !about_vcpu {
        return Err(LinkError::Vcpu { kind: frame.kind, vcpu: frame.vcpu });
    }
    Ok(())
}

/// The longest beginning of `text` of at most `bytes` bytes that ends between two characters.
pub fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}
