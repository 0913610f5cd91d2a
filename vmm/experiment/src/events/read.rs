//! Reading a log, section by section.

use std::io::{self, Read};

use super::{MAGIC, MOST_BYTES, RowEvents, VERSION, stream};
use program::exit::{Class, Classified};

/// Why a file is no event log, or a damaged one. Bytes are counted from the begin of the file.
#[derive(Debug, thiserror::Error)]
pub enum EventLogError {
    /// It cannot be read.
    #[error("the event log cannot be read")]
    Read(#[from] io::Error),
    /// It begins otherwise.
    #[error("byte 0: this is no event log: name the directory of a run that `zapscope run` wrote")]
    NoLog,
    /// Another program wrote it.
    #[error(
        "byte 8: an event log of version {0}, and this zapscope reads version {VERSION}: use the one that wrote it"
    )]
    Version(u32),
    /// It ends too early.
    #[error(
        "byte {at}: the event log ends in the middle of a section: copy it again, or run the scenario again"
    )]
    Truncated {
        /// Where the section begins.
        at: u64,
    },
    /// A length beyond all bounds.
    #[error("byte {at}: a section of {bytes} bytes, more than any row has: the event log is damaged")]
    Large {
        /// Where the section begins.
        at: u64,
        /// What it says of itself.
        bytes: u64,
    },
    /// The checksum is another.
    #[error(
        "byte {at}: the section's checksum is {found:#010x} and should be {expected:#010x}: the event log is damaged"
    )]
    Checksum {
        /// Where the section begins.
        at: u64,
        /// Of what was read.
        found: u32,
        /// As the section has it.
        expected: u32,
    },
    /// The events make no sense.
    #[error("byte {at}: {what}: the event log is damaged")]
    Senseless {
        /// Where in the file.
        at: u64,
        /// What makes no sense.
        what: String,
    },
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
    /// [`EventLogError`]; what comes after a damaged section cannot be read.
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
        let mut sum = crc32fast::Hasher::new();
        sum.update(&row.to_le_bytes());
        sum.update(&bytes);
        let found = sum.finalize();
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
    ///
    /// # Errors
    /// As [`EventLog::next_row`].
    pub fn rows(mut self) -> Result<Vec<RowEvents>, EventLogError> {
        let mut rows = Vec::new();
        while let Some(row) = self.next_row()? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// As many bytes as there are, at most `len`: memory grows with what is read, not with what is said.
    fn take(&mut self, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.source.by_ref().take(len).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}
