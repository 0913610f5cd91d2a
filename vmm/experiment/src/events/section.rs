//! A row's section of the log: what [`EventLog`](super::EventLog) reads.

use super::stream::Stream;
use super::{MAGIC, MOST_BYTES, VERSION};

/// The first bytes of a log.
pub(super) fn preamble() -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 4]].concat()
}

/// The CRC-32 of a section.
pub(super) fn checksum(row: u32, events: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&row.to_le_bytes());
    sum.update(events);
    sum.finalize()
}

/// The events take more than a reader takes.
#[derive(Debug, thiserror::Error)]
#[error("the events of the row take {0} bytes, and a log holds {MOST_BYTES} a row: take less in one case")]
pub struct TooLarge(usize);

/// The events of one row, in the form of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    row: u32,
    bytes: Vec<u8>,
}

impl Section {
    /// The section of the row with this place in `run.json`, from 0.
    pub fn new(row: u32, events: &Stream) -> Result<Self, TooLarge> {
        let events = events.bytes();
        let len = u32::try_from(events.len()).ok().filter(|len| *len <= MOST_BYTES);
        let len = len.ok_or(TooLarge(events.len()))?;
        let mut bytes = Vec::with_capacity(12 + events.len());
        for number in [row, len, checksum(row, events)] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(events);
        Ok(Self { row, bytes })
    }

    /// The row's place in `run.json`, from 0.
    pub fn row(&self) -> u32 {
        self.row
    }

    /// As the log has it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
