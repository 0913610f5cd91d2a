//! Sections as they are made, until the run directory is: in a file without a name, which is no part of the process's
//! memory and goes with it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use rustix::fs::MemfdFlags;

use super::encode::BodyWriter;
use super::header::RowHeader;
use super::{MAGIC, MOST_BODY, MOST_HEADER, VERSION};

/// A section could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The system refuses.
    #[error(
        "the event log cannot be kept in memory until the run is over: give the host more, or run fewer rows"
    )]
    Keep(#[from] io::Error),
    /// The header is no JSON.
    #[error("the event log's header cannot be written")]
    Header(#[from] serde_json::Error),
    /// The section is larger than a reader takes.
    #[error("the events of a row take {0} bytes, and a log holds {MOST_BODY} a row: take less in one case")]
    Large(u64),
}

/// A log in the making.
#[derive(Debug, Default)]
pub struct Spool {
    /// Made with the first section.
    file: Option<File>,
}

impl Spool {
    /// Adds a section.
    ///
    /// # Errors
    /// [`SpoolError`]; then nothing of it is in the log.
    pub fn append(&mut self, header: &RowHeader, body: &BodyWriter) -> Result<(), SpoolError> {
        let header = serde_json::to_vec(header)?;
        let body_len: usize = body.parts().iter().map(|part| part.len()).sum();
        if header.len() as u64 > u64::from(MOST_HEADER) || body_len as u64 > u64::from(MOST_BODY) {
            return Err(SpoolError::Large((header.len() + body_len) as u64));
        }
        let mut sum = crc32fast::Hasher::new();
        sum.update(&header);
        body.parts().iter().for_each(|part| sum.update(part));
        let mut section = Vec::with_capacity(12 + header.len() + body_len);
        for number in [header.len() as u32, body_len as u32, sum.finalize()] {
            section.extend(number.to_le_bytes());
        }
        section.extend(&header);
        body.parts().iter().for_each(|part| section.extend(*part));
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(fresh()?),
        };
        let begin = file.stream_position()?;
        let written = file.write_all(&section);
        if written.is_err() {
            // A section cut short would make what comes after it unreadable.
            file.set_len(begin)?;
            file.seek(SeekFrom::Start(begin))?;
        }
        Ok(written?)
    }

    /// Whether there is no section.
    pub fn is_empty(&self) -> bool {
        self.file.is_none()
    }

    /// Writes the whole log to `out`.
    ///
    /// # Errors
    /// Either file refuses.
    pub fn write_to(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.seek(SeekFrom::Start(0))?;
        let mut piece = vec![0; 64 << 10];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(()),
                read => out.write_all(&piece[..read])?,
            }
        }
    }
}

fn fresh() -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("zapscope-events", MemfdFlags::CLOEXEC)?);
    file.write_all(&MAGIC)?;
    file.write_all(&VERSION.to_le_bytes())?;
    file.write_all(&0u32.to_le_bytes())?;
    Ok(file)
}
