//! A source without a kernel: a thread of this process writes the same bytes through the same ring.
//!
//! The writer follows `perf_output_begin` and `perf_output_end`: a record that does not fit is counted, the next one that
//! fits is preceded by a `PERF_RECORD_LOST`, and the reader is woken after each watermark of bytes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use perf_event_open_sys::bindings as abi;
use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::mapping::Mapping;
use super::perf_record::{read, write_sample};
use super::ring::Damaged;
use super::ring::{HEAD, HEADER, Ring, TAIL};
use super::source::{Record, Source};
use super::tracepoints::Sample;

/// The first page, which is not data.
const PAGE: usize = 4096;

/// The reader's half.
#[derive(Debug)]
pub struct Synthetic {
    ring: Ring,
    wake: Arc<OwnedFd>,
    lost: u64,
}

/// The writer's half. It reports losses to the reader with the next record that fits.
#[derive(Debug)]
pub struct Producer {
    memory: Arc<Mapping>,
    wake: Arc<OwnedFd>,
    size: u64,
    watermark: u64,
    head: u64,
    woken_at: u64,
    lost: u64,
    record: Vec<u8>,
}

/// Both halves of a ring of `size` bytes of data, a power of two.
///
/// # Errors
/// There is no memory for it.
///
/// # Panics
/// If the size is not a power of two of at least a page.
pub fn synthetic(size: usize) -> Result<(Synthetic, Producer), Errno> {
    let memory = Arc::new(Mapping::anonymous(PAGE + size)?);
    let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let ring = Ring::new(memory.clone(), PAGE);
    let reader = Synthetic { ring, wake: wake.clone(), lost: 0 };
    let size = size as u64;
    let record = Vec::with_capacity(256);
    Ok((reader, Producer { memory, wake, size, watermark: size / 2, head: 0, woken_at: 0, lost: 0, record }))
}

impl Producer {
    /// Writes a sample, as if on `cpu`; returns whether it fitted.
    pub fn push(&mut self, sample: &Sample<'_>, cpu: u32) -> bool {
        self.record.clear();
        if self.lost > 0 {
            let body = [0, self.lost].map(u64::to_le_bytes);
            begin(&mut self.record, abi::PERF_RECORD_LOST, body.as_flattened().len());
            self.record.extend_from_slice(body.as_flattened());
        }
        let at = self.record.len();
        begin(&mut self.record, abi::PERF_RECORD_SAMPLE, 0);
        write_sample(&mut self.record, sample, cpu);
        let length = (self.record.len() - at) as u16;
        self.record[at + 6..at + 8].copy_from_slice(&length.to_le_bytes());
        let stored = self.store();
        if stored {
            self.lost = 0
        } else {
            self.lost += 1
        }
        stored
    }

    /// Bytes of records written so far.
    pub fn written(&self) -> u64 {
        self.head
    }

    fn store(&mut self) -> bool {
        let tail = self.memory.word(TAIL).load(Ordering::Acquire);
        let room = self.size - (self.head - tail);
        // As in the kernel, the ring is never filled to the last byte: head and tail would be equal.
        if room <= self.record.len() as u64 {
            return false;
        }
        let at = (self.head & (self.size - 1)) as usize;
        let front = self.record.len().min(self.size as usize - at);
        // SAFETY: the reader does not read beyond the head until it moves past; the room was just measured.
        unsafe { self.memory.put(PAGE + at, &self.record[..front]) };
        // SAFETY: as above; the record continues at the beginning of the data.
        unsafe { self.memory.put(PAGE, &self.record[front..]) };
        self.head += self.record.len() as u64;
        self.memory.word(HEAD).store(self.head, Ordering::Release);
        if self.head - self.woken_at > self.watermark {
            self.woken_at = self.head;
            // The counter cannot overflow: each read resets it.
            let _ = rustix::io::retry_on_intr(|| rustix::io::write(&*self.wake, &1u64.to_ne_bytes()));
        }
        true
    }
}

fn begin(record: &mut Vec<u8>, kind: u32, body: usize) {
    record.extend(kind.to_le_bytes());
    record.extend([0, (HEADER + body) as u16].map(u16::to_le_bytes).as_flattened());
}

impl Source for Synthetic {
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.wake.as_fd()]
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Record<'_>)) -> Result<(), Damaged> {
        // Fails if no watermark was reached since the last time.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        let lost = &mut self.lost;
        self.ring.drain(|kind, body| read(kind, body).pass(sink, lost))
    }

    fn lost(&mut self) -> u64 {
        self.lost
    }
}
