//! A row's section, as bytes: what [`EventLog`](super::EventLog) reads.

use super::encode::BodyWriter;
use super::header::RowHeader;
use super::{MAGIC, MOST_BODY, MOST_HEADER, VERSION};

/// What a log begins with.
pub(super) const PREAMBLE: [u8; 16] = {
    let mut bytes = [0; 16];
    let version = VERSION.to_le_bytes();
    let mut at = 0;
    while at < 12 {
        bytes[at] = if at < 8 { MAGIC[at] } else { version[at - 8] };
        at += 1;
    }
    bytes
};

/// A row has no section.
#[derive(Debug, thiserror::Error)]
pub enum SectionError {
    /// The header is no JSON.
    #[error("the event log's header cannot be written")]
    Header(#[from] serde_json::Error),
    /// The section is larger than a reader takes.
    #[error("the events of a row take {0} bytes, and a log holds {MOST_BODY} a row: take less in one case")]
    Large(u64),
}

/// What happened in one row, ready for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    row: u32,
    bytes: Vec<u8>,
}

impl Section {
    /// The section of this header and body.
    ///
    /// # Errors
    /// [`SectionError`].
    pub fn new(header: &RowHeader, body: &BodyWriter) -> Result<Self, SectionError> {
        let row = header.row;
        let header = serde_json::to_vec(header)?;
        let body_len: usize = body.parts().iter().map(|part| part.len()).sum();
        if header.len() as u64 > u64::from(MOST_HEADER) || body_len as u64 > u64::from(MOST_BODY) {
            return Err(SectionError::Large((header.len() + body_len) as u64));
        }
        let mut sum = crc32fast::Hasher::new();
        sum.update(&header);
        body.parts().iter().for_each(|part| sum.update(part));
        let mut bytes = Vec::with_capacity(12 + header.len() + body_len);
        for number in [header.len() as u32, body_len as u32, sum.finalize()] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(&header);
        body.parts().iter().for_each(|part| bytes.extend(*part));
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
