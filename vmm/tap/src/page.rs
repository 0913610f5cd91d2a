//! A page of a tracefs ring buffer, as `trace_pipe_raw` gives it.
//!
//! ```text
//!   timestamp │ commit: bytes of data, and flags │ event event event …
//!                                                   └─ type_len:5 time_delta:27 │ [length or time] │ the record
//! ```
//!
//! Where the head's fields lie is read from `events/header_page`; `events/header_event` must describe the events as
//! they are read here, or the page is not read at all.

use super::format::{Field, Format, FormatError};

/// A page that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a page of the trace buffer is damaged at byte {at}: stop this run, and report the kernel's version")]
pub struct DamagedPage {
    /// The offset of the first byte that makes no sense.
    pub at: usize,
}

/// What `header_event` must say, white space apart.
const EVENT: [&str; 7] = [
    "type_len : 5 bits",
    "time_delta : 27 bits",
    "array : 32 bits",
    "padding : type == 29",
    "time_extend : type == 30",
    "time_stamp : type == 31",
    "data max type_len == 28",
];

const PADDING: u32 = 29;
const TIME_EXTEND: u32 = 30;
const TIME_STAMP: u32 = 31;
/// Bits of `time_delta`.
const DELTA_BITS: u32 = 27;
/// `commit` holds the length in these bits; flags are above.
const COMMIT_LENGTH: u64 = (1 << 20) - 1;
/// An absolute time stamp has 59 bits; what is above is that of the page's.
const STAMP_BITS: u32 = 59;

/// Where things are in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageLayout {
    timestamp: Field,
    commit: Field,
    data: usize,
}

impl PageLayout {
    /// Reads what `events/header_page` and `events/header_event` say.
    pub(super) fn parse(page: &str, event: &str) -> Result<Self, FormatError> {
        let page = Format::parse(&format!("name: header_page\nID: 0\n{page}"))?;
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = event.lines().map(words).collect();
        for wanted in EVENT {
            if !lines.iter().any(|line| line == wanted) {
                return Err(FormatError::Missing(wanted));
            }
        }
        let layout = Self {
            timestamp: page.word("timestamp")?,
            commit: page.field("commit")?,
            data: page.start_of("data")?,
        };
        Ok(layout)
    }

    /// Gives each record of a page to `each`, with its time.
    pub(super) fn records(&self, page: &[u8], mut each: impl FnMut(u64, &[u8])) -> Result<(), DamagedPage> {
        let head = |field: Field| field.read(page).ok_or(DamagedPage { at: field.offset() });
        let (mut time, commit) = (head(self.timestamp)?, head(self.commit)?);
        let end = self.data + (commit & COMMIT_LENGTH) as usize;
        if end > page.len() {
            return Err(DamagedPage { at: self.commit.offset() });
        }
        let mut at = self.data;
        while at < end {
            let damaged = DamagedPage { at };
            let half = |at: usize| -> Result<u32, DamagedPage> {
                let bytes = page[..end].get(at..at + 4).ok_or(damaged)?;
                Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| damaged)?))
            };
            let header = half(at)?;
            let (kind, delta) = (header & 31, u64::from(header >> (32 - DELTA_BITS)));
            let body = at + 4;
            match kind {
                // A discarded record, or without a delta the rest of the page.
                PADDING if delta == 0 => break,
                PADDING => at = body + (half(body)? as usize).max(4),
                TIME_EXTEND | TIME_STAMP => {
                    let long = u64::from(half(body)?) << DELTA_BITS | delta;
                    time = match kind {
                        TIME_EXTEND => time.wrapping_add(long),
                        _ => time >> STAMP_BITS << STAMP_BITS | long,
                    };
                    at = body + 4;
                }
                _ => {
                    time = time.wrapping_add(delta);
                    // A length beyond 28 words stands before the record, and counts itself.
                    let (begin, length) = match kind {
                        0 => (body + 4, (half(body)? as usize).checked_sub(4).ok_or(damaged)?),
                        words => (body, 4 * words as usize),
                    };
                    let next = begin.checked_add(length.next_multiple_of(4)).ok_or(damaged)?;
                    each(time, page[..end].get(begin..begin + length).ok_or(damaged)?);
                    at = next;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
