//! The text that waits to be written, in order and up to a limit.
//!
//! ```text
//!   push ──> chunks of both streams, oldest first ──> first(writable) ── write ──> written(count)
//!     └─ over the limit: bytes are dropped and counted ── half is written ──> a note with the count
//! ```

use std::collections::VecDeque;

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Whether text may be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Never: a result.
    Always,
    /// Over the limit: messages and progress.
    WithRoom,
}

/// The limit on the bytes of a stream that wait.
pub const ROOM: usize = 1 << 20;
/// Consecutive short texts are joined up to this length.
const GATHER: usize = 4096;

#[derive(Debug)]
struct Chunk {
    stream: Stream,
    bytes: Vec<u8>,
    /// The number of bytes that are written.
    written: usize,
}

#[derive(Debug)]
struct Lane {
    /// Bytes that wait.
    waiting: usize,
    /// Bytes dropped since the last note.
    dropped: u64,
    /// Closed: nothing more is written.
    dead: bool,
}

/// The text that waits to be written.
#[derive(Debug)]
pub struct Queue {
    chunks: VecDeque<Chunk>,
    lanes: [Lane; 2],
}

impl Lane {
    const OPEN: Self = Self { waiting: 0, dropped: 0, dead: false };
}

impl Queue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { chunks: VecDeque::new(), lanes: [Lane::OPEN; 2] }
    }

    /// Appends bytes, all or none.
    pub fn push(&mut self, stream: Stream, bytes: &[u8], keep: Keep) {
        let lane = &mut self.lanes[stream as usize];
        if lane.dead || bytes.is_empty() {
            return;
        }
        let full = lane.dropped > 0 || lane.waiting + bytes.len() > ROOM;
        if full && keep == Keep::WithRoom {
            lane.dropped += bytes.len() as u64;
            return;
        }
        self.note_loss(stream);
        self.append(stream, bytes);
    }

    fn append(&mut self, stream: Stream, bytes: &[u8]) {
        self.lanes[stream as usize].waiting += bytes.len();
        match self.chunks.back_mut() {
            Some(last) if last.stream == stream && last.bytes.len() + bytes.len() <= GATHER => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => self.chunks.push_back(Chunk { stream, bytes: bytes.to_vec(), written: 0 }),
        }
    }

    /// Appends a note in place of the dropped bytes.
    fn note_loss(&mut self, stream: Stream) {
        let dropped = std::mem::take(&mut self.lanes[stream as usize].dropped);
        if dropped > 0 {
            let note = format!(
                "\n[zapscope: {dropped} bytes were dropped here: the ones before had not been read]\n"
            );
            self.append(stream, note.as_bytes());
        }
    }

    /// The oldest bytes for one of the streams that can be written to.
    pub fn first(&self, writable: [bool; 2]) -> Option<(Stream, &[u8])> {
        let chunk = self.chunks.iter().find(|chunk| writable[chunk.stream as usize])?;
        Some((chunk.stream, &chunk.bytes[chunk.written..]))
    }

    /// So many of the stream's oldest bytes are written.
    pub fn written(&mut self, stream: Stream, count: usize) {
        let Some(at) = self.chunks.iter().position(|chunk| chunk.stream == stream) else { return };
        let chunk = &mut self.chunks[at];
        chunk.written += count;
        if chunk.written >= chunk.bytes.len() {
            self.chunks.remove(at);
        }
        let lane = &mut self.lanes[stream as usize];
        lane.waiting = lane.waiting.saturating_sub(count);
        // Text is accepted again at half the limit, so that a slow reader gets one note and not one for each line.
        if lane.waiting <= ROOM / 2 {
            self.note_loss(stream);
        }
    }

    /// Drops the text of a stream, and all later text: it has no reader any more.
    pub fn close(&mut self, stream: Stream) {
        self.chunks.retain(|chunk| chunk.stream != stream);
        self.lanes[stream as usize] = Lane { dead: true, ..Lane::OPEN };
    }

    /// The streams for which text waits.
    pub fn wanted(&self) -> [bool; 2] {
        [Stream::Out, Stream::Err].map(|stream| self.lanes[stream as usize].waiting > 0)
    }

    /// The bytes that wait for a stream.
    #[cfg(test)]
    pub fn waiting(&self, stream: Stream) -> usize {
        self.lanes[stream as usize].waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: [bool; 2] = [true; 2];

    /// Writes all text, `at_a_time` bytes by each call; returns the text of each stream.
    fn drain(queue: &mut Queue, at_a_time: usize) -> [String; 2] {
        let mut got = [Vec::new(), Vec::new()];
        while let Some((stream, bytes)) = queue.first(BOTH) {
            let count = bytes.len().min(at_a_time);
            got[stream as usize].extend_from_slice(&bytes[..count]);
            queue.written(stream, count);
        }
        assert_eq!(queue.wanted(), [false; 2]);
        got.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn text_is_written_in_order() {
        let mut queue = Queue::new();
        queue.push(Stream::Err, b"begun\n", Keep::WithRoom);
        queue.push(Stream::Out, b"table\n", Keep::Always);
        queue.push(Stream::Err, b"done\n", Keep::WithRoom);
        assert_eq!(queue.first(BOTH), Some((Stream::Err, &b"begun\n"[..])));
        assert_eq!(queue.first([true, false]), Some((Stream::Out, &b"table\n"[..])), "the other one waits");
        queue.written(Stream::Out, 6);
        assert_eq!(drain(&mut queue, 3), [String::new(), "begun\ndone\n".to_owned()]);
    }

    #[test]
    fn a_stream_without_a_reader_does_not_grow() {
        let mut queue = Queue::new();
        let line = [b'x'; 1000];
        for _ in 0..5000 {
            queue.push(Stream::Out, &line, Keep::WithRoom);
        }
        assert!(queue.waiting(Stream::Out) <= ROOM);
        queue.push(Stream::Err, b"stopping\n", Keep::WithRoom);
        assert_eq!(queue.first([false, true]), Some((Stream::Err, &b"stopping\n"[..])));
        let kept = queue.waiting(Stream::Out);
        let [out, _] = drain(&mut queue, 4096);
        let note = format!("\n[zapscope: {} bytes were dropped here", 5_000_000 - kept);
        assert_eq!(out.find(&note), Some(kept), "at the place, with the number");
        queue.push(Stream::Out, b"again\n", Keep::WithRoom);
        assert_eq!(drain(&mut queue, 4096)[0], "again\n");
    }

    #[test]
    fn a_result_is_never_dropped() {
        let mut queue = Queue::new();
        queue.push(Stream::Out, &vec![b'x'; ROOM], Keep::WithRoom);
        queue.push(Stream::Out, b"lost\n", Keep::WithRoom);
        queue.push(Stream::Out, &vec![b'q'; 2 * ROOM], Keep::Always);
        let [out, _] = drain(&mut queue, 4096);
        assert!(!out.contains("lost"));
        let (before, after) = out.split_once("\n[zapscope: 5 bytes were dropped here").unwrap();
        assert_eq!((before.len(), after.matches('q').count()), (ROOM, 2 * ROOM));
    }

    #[test]
    fn a_closed_stream_drops_its_text_and_the_other_goes_on() {
        let mut queue = Queue::new();
        queue.push(Stream::Out, b"a", Keep::Always);
        queue.push(Stream::Err, b"b", Keep::Always);
        queue.close(Stream::Err);
        queue.push(Stream::Err, b"c", Keep::Always);
        assert_eq!(queue.wanted(), [true, false]);
        assert_eq!(drain(&mut queue, 1), ["a".to_owned(), String::new()]);
    }

    proptest! {
        #[test]
        fn dropped_bytes_are_counted(
            said in prop::collection::vec((any::<bool>(), any::<bool>(), 1usize..300_000, 0usize..400_000), 1..40),
        ) {
            let mut queue = Queue::new();
            let (mut pushed, mut got) = (0, Vec::new());
            for (always, read, len, count) in said {
                let keep = if always { Keep::Always } else { Keep::WithRoom };
                let before = queue.waiting(Stream::Out);
                queue.push(Stream::Out, &vec![b'x'; len], keep);
                pushed += len as u64;
                if keep == Keep::WithRoom {
                    prop_assert!(queue.waiting(Stream::Out) <= before.max(ROOM));
                }
                if read && let Some((stream, bytes)) = queue.first(BOTH) {
                    let count = bytes.len().min(count);
                    got.extend_from_slice(&bytes[..count]);
                    queue.written(stream, count);
                }
            }
            let text = String::from_utf8(got).unwrap() + &drain(&mut queue, 4096)[0];
            let dropped = text.split("[zapscope: ").skip(1);
            let dropped: u64 = dropped.map(|note| note.split(' ').next().unwrap().parse::<u64>().unwrap()).sum();
            let notes = text.matches("had not been read").count() as u64;
            // The note has no x.
            prop_assert_eq!(text.matches('x').count() as u64 + dropped, pushed);
            prop_assert!(notes > 0 || dropped == 0);
        }
    }
}
