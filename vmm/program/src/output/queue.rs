//! What waits to be written: in the order in which it was said, and no more of it than there is room for.
//!
//! ```text
//!   push ──> chunks of both streams, oldest first ──> first(writable) ── write ──> written(count)
//!     └─ no room: the stream is shut, bytes are counted ── half of it is written ──> a note says how many
//! ```

use std::collections::VecDeque;

/// Where text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// For whom room is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// However much waits: a result.
    Always,
    /// While there is room: what goes on being said whether or not somebody reads it.
    WithRoom,
}

/// How many bytes of a stream may wait.
pub const ROOM: usize = 1 << 20;
/// Short texts that follow one another are written with one call, up to this length.
const GATHER: usize = 4096;

#[derive(Debug)]
struct Chunk {
    stream: Stream,
    bytes: Vec<u8>,
    /// How many of the bytes are written.
    written: usize,
}

#[derive(Debug)]
struct Lane {
    /// Bytes that wait.
    waiting: usize,
    /// Bytes that were dropped since there was room last.
    dropped: u64,
    /// Nothing is written to it any more.
    dead: bool,
}

/// What waits to be written.
#[derive(Debug)]
pub struct Queue {
    chunks: VecDeque<Chunk>,
    lanes: [Lane; 2],
}

impl Lane {
    const OPEN: Self = Self { waiting: 0, dropped: 0, dead: false };
}

impl Queue {
    /// Nothing waits.
    pub const fn new() -> Self {
        Self { chunks: VecDeque::new(), lanes: [Lane::OPEN; 2] }
    }

    /// Puts bytes at the end, as a whole or not at all.
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

    /// Says how much is missing, at the place where it is.
    fn note_loss(&mut self, stream: Stream) {
        let dropped = std::mem::take(&mut self.lanes[stream as usize].dropped);
        if dropped > 0 {
            let note =
                format!("\n[zapscope: {dropped} bytes were dropped here: nobody had read the ones before]\n");
            self.append(stream, note.as_bytes());
        }
    }

    /// The oldest bytes for one of the streams that can be written to.
    pub fn first(&self, writable: [bool; 2]) -> Option<(Stream, &[u8])> {
        let chunk = self.chunks.iter().find(|chunk| writable[chunk.stream as usize])?;
        Some((chunk.stream, &chunk.bytes[chunk.written..]))
    }

    /// The stream's oldest bytes are written, so many of them.
    pub fn written(&mut self, stream: Stream, count: usize) {
        let Some(at) = self.chunks.iter().position(|chunk| chunk.stream == stream) else { return };
        let chunk = &mut self.chunks[at];
        chunk.written += count;
        if chunk.written >= chunk.bytes.len() {
            self.chunks.remove(at);
        }
        let lane = &mut self.lanes[stream as usize];
        lane.waiting = lane.waiting.saturating_sub(count);
        // With a gap between shut and open there is one note for a slow reader, not one a line.
        if lane.waiting <= ROOM / 2 {
            self.note_loss(stream);
        }
    }

    /// Nobody will read the stream any more: drops what waits for it, and what is still to come.
    pub fn close(&mut self, stream: Stream) {
        self.chunks.retain(|chunk| chunk.stream != stream);
        self.lanes[stream as usize] = Lane { dead: true, ..Lane::OPEN };
    }

    /// For which streams something waits.
    pub fn wanted(&self) -> [bool; 2] {
        [Stream::Out, Stream::Err].map(|stream| self.lanes[stream as usize].waiting > 0)
    }

    /// How many bytes wait for a stream.
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

    /// Writes all that waits, `at_a_time` bytes with each call. Returns what each stream got.
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
    fn what_is_said_is_written_in_order() {
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
    fn a_stream_that_nobody_reads_does_not_grow() {
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
    fn a_result_is_kept_whatever_waits() {
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
    fn a_closed_stream_swallows_and_the_other_goes_on() {
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
        fn nothing_is_lost_that_is_not_counted(
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
            let notes = text.matches("nobody had read").count() as u64;
            // The note has no x.
            prop_assert_eq!(text.matches('x').count() as u64 + dropped, pushed);
            prop_assert!(notes > 0 || dropped == 0);
        }
    }
}
