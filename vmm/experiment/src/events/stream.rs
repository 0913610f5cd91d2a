//! A row's events, in the form in which they go to the disk.

use super::Event;
use super::check::Check;

/// The events of a row: appended by the thread that performs it, between its operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream(Vec<u8>);

impl Stream {
    /// Appends an event.
    pub fn push(&mut self, event: &Event) {
        let bytes = std::mem::take(&mut self.0);
        // It refuses sequences of unknown length alone, and there are none among an event's fields.
        self.0 = postcard::to_extend(event, bytes).expect("an event can be written");
    }

    /// All of them as bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All of them.
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (event, left) = postcard::take_from_bytes(Some(rest).filter(|rest| !rest.is_empty())?)
                .expect("what was written can be read");
            rest = left;
            Some(event)
        })
    }
}

/// The error in bytes that should be a row's events, and the number of bytes left at that place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadStream {
    pub what: String,
    pub left: usize,
}

/// The events that bytes from anywhere are.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Event>, BadStream> {
    let (mut rest, mut events, mut check) = (bytes, Vec::new(), Check::default());
    let bad = |what: String, rest: &[u8]| Err(BadStream { what, left: rest.len() });
    while !rest.is_empty() {
        let (event, left) = match postcard::take_from_bytes::<Event>(rest) {
            Ok(read) => read,
            Err(error) => return bad(format!("no event ({error})"), rest),
        };
        if let Err(what) = check.event(&event) {
            return bad(what.to_owned(), rest);
        }
        events.push(event);
        rest = left;
    }
    match check.end() {
        Ok(()) => Ok(events),
        Err(what) => bad(what.to_owned(), rest),
    }
}
