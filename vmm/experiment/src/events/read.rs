//! Reading a log, section by section.

use std::io::{self, Read};

use super::section::checksum;
use super::{MAGIC, MOST_BYTES, RowEvents, VERSION, stream};
use program::exit::{Class, Classified};

/// A file that is no event log, or a damaged one. Bytes are counted from the begin of the file.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum EventLogError {
    #[error("the event log cannot be read")]
    Read(#[from] io::Error),
    #[error("byte 0: this is no event log: name the directory of a run that `zapscope run` wrote")]
    NoLog,
    #[error(
        "byte 8: an event log of version {0}, and this zapscope reads version {VERSION}: use the one that wrote it"
    )]
    Version(u32),
    #[error(
        "byte {at}: the event log ends in the middle of a section: copy it again, or run the scenario again"
    )]
    Truncated { at: u64 },
    #[error("byte {at}: a section of {bytes} bytes, more than any row has: the event log is damaged")]
    Large { at: u64, bytes: u64 },
    #[error(
        "byte {at}: the section's checksum is {found:#010x} and should be {expected:#010x}: the event log is damaged"
    )]
    Checksum { at: u64, found: u32, expected: u32 },
    #[error("byte {at}: {what}: the event log is damaged")]
    Senseless { at: u64, what: String },
}

impl Classified for EventLogError {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

/// A log being read.
#[derive(Debug)]
pub struct EventLog<R> {
    source: R,
    at: u64,
}

impl<R: Read> EventLog<R> {
    /// Reads a log from anywhere.
    ///
    /// # Errors
    /// It cannot be read, or is none of this version.
    pub fn new(mut source: R) -> Result<Self, EventLogError> {
        let mut start = Vec::new();
        source.by_ref().take(16).read_to_end(&mut start)?;
        let Some((magic, rest)) = start.split_first_chunk::<8>() else { return Err(EventLogError::NoLog) };
        let Some((version, _)) = rest.split_first_chunk::<4>() else { return Err(EventLogError::NoLog) };
        if *magic != MAGIC || start.len() < 16 {
            return Err(EventLogError::NoLog);
        }
        match u32::from_le_bytes(*version) {
            VERSION => Ok(Self { source, at: 16 }),
            other => Err(EventLogError::Version(other)),
        }
    }

    /// The next section; `None` at the end of the log.
    ///
    /// # Errors
    /// A damaged section; those after it cannot be read.
    pub fn next_row(&mut self) -> Result<Option<RowEvents>, EventLogError> {
        let at = self.at;
        let frame = self.take(12)?;
        if frame.is_empty() {
            return Ok(None);
        }
        let number =
            |index: usize| frame.get(4 * index..4 * index + 4).and_then(|bytes| bytes.try_into().ok());
        let [Some(row), Some(len), Some(expected)] =
            [number(0), number(1), number(2)].map(|bytes| bytes.map(u32::from_le_bytes))
        else {
            return Err(EventLogError::Truncated { at });
        };
        if len > MOST_BYTES {
            return Err(EventLogError::Large { at, bytes: len.into() });
        }
        let bytes = self.take(len.into())?;
        if bytes.len() as u64 != u64::from(len) {
            return Err(EventLogError::Truncated { at });
        }
        let found = checksum(row, &bytes);
        if found != expected {
            return Err(EventLogError::Checksum { at, found, expected });
        }
        match stream::read(&bytes) {
            Ok(events) => Ok(Some(RowEvents { row, events })),
            Err(bad) => {
                let into = (bytes.len() - bad.left) as u64;
                Err(EventLogError::Senseless { at: at + 12 + into, what: bad.what })
            }
        }
    }

    /// Every section.
    pub fn rows(mut self) -> Result<Vec<RowEvents>, EventLogError> {
        let mut rows = Vec::new();
        while let Some(row) = self.next_row()? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// As many bytes as there are, at most `len`: memory grows with the bytes that are there, not with the length that is claimed.
    fn take(&mut self, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.source.by_ref().take(len).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}
