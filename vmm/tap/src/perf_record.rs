//! Records of a perf ring: a sample of a tracepoint, or a count of lost records.
//!
//! ```text
//!   PERF_RECORD_SAMPLE  │ pid tid │ time │ cpu 0 │ size │ the tracepoint's record … │ padding │
//!                         4   4      8     4   4    4                                  to 8
//!   PERF_RECORD_LOST    │ id │ how many │ …
//! ```
//!
//! The layout follows from the sample type, which is the same for every event that [`perf`](super::perf) opens.

use perf_event_open_sys::bindings as abi;

use super::source::Record;
use super::tracepoints::Sample;

/// The fields of a sample, in this order.
pub(super) const SAMPLE_TYPE: u32 =
    abi::PERF_SAMPLE_TID | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_CPU | abi::PERF_SAMPLE_RAW;

/// Bytes before the tracepoint's own record.
pub(super) const BEFORE_RAW: usize = 28;

/// A decoded record of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PerfRecord<'a> {
    Sample(Sample<'a>),
    Lost(u64),
    /// A sample that is too short for its length.
    Malformed,
    /// A record of another type, or one too short for its type.
    Other,
}

impl PerfRecord<'_> {
    /// Passes a sample to `sink`, and adds losses to `lost`.
    #[inline]
    pub(super) fn pass(self, sink: &mut dyn FnMut(Record<'_>), lost: &mut u64) {
        match self {
            Self::Sample(sample) => sink(Record::Sample(sample)),
            Self::Lost(records) => *lost += records,
            Self::Malformed => sink(Record::Malformed),
            Self::Other => {}
        }
    }
}

/// Decodes a record of a ring.
pub(super) fn read(kind: u32, body: &[u8]) -> PerfRecord<'_> {
    match kind {
        abi::PERF_RECORD_SAMPLE => sample(body).map_or(PerfRecord::Malformed, PerfRecord::Sample),
        abi::PERF_RECORD_LOST => word(body, 8).map_or(PerfRecord::Other, PerfRecord::Lost),
        abi::PERF_RECORD_LOST_SAMPLES => word(body, 0).map_or(PerfRecord::Other, PerfRecord::Lost),
        _ => PerfRecord::Other,
    }
}

fn sample(body: &[u8]) -> Option<Sample<'_>> {
    let length = half(body, 24)? as usize;
    let raw = body.get(BEFORE_RAW..)?.get(..length)?;
    Some(Sample { pid: half(body, 0)?, tid: half(body, 4)?, time_ns: word(body, 8)?, raw })
}

fn half(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?))
}

fn word(body: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?))
}

/// Writes the body of a sample as the kernel does.
pub(super) fn write_sample(out: &mut Vec<u8>, sample: &Sample<'_>, cpu: u32) {
    out.extend(sample.pid.to_le_bytes());
    out.extend(sample.tid.to_le_bytes());
    out.extend(sample.time_ns.to_le_bytes());
    out.extend([cpu, 0].map(u32::to_le_bytes).as_flattened());
    // The kernel pads so that the whole record is a multiple of 8 bytes; the size includes the padding.
    let padded = (4 + sample.raw.len()).next_multiple_of(8) - 4;
    out.extend((padded as u32).to_le_bytes());
    out.extend_from_slice(sample.raw);
    out.resize(out.len() + padded - sample.raw.len(), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sample_reads_as_it_was_written(time_ns: u64, pid: u32, tid: u32, cpu: u32,
                                            raw in prop::collection::vec(any::<u8>(), 0..100)) {
            let sample = Sample { time_ns, pid, tid, raw: &raw };
            let mut body = Vec::new();
            write_sample(&mut body, &sample, cpu);
            prop_assert!(body.len().is_multiple_of(8));
            let PerfRecord::Sample(read) = read(abi::PERF_RECORD_SAMPLE, &body) else { panic!("a sample") };
            prop_assert_eq!((read.time_ns, read.pid, read.tid), (time_ns, pid, tid));
            prop_assert_eq!(&read.raw[..raw.len()], &raw[..]);
        }

        #[test]
        fn no_bytes_make_it_panic(kind in 0u32..20, body in prop::collection::vec(any::<u8>(), 0..80)) {
            if let PerfRecord::Sample(sample) = read(kind, &body) {
                prop_assert!(sample.raw.len() + BEFORE_RAW <= body.len());
            }
        }
    }

    #[test]
    fn losses_are_read_from_both_records_that_tell_them() {
        let body = [7u64.to_le_bytes(), 41u64.to_le_bytes()].concat();
        assert_eq!(read(abi::PERF_RECORD_LOST, &body), PerfRecord::Lost(41));
        assert_eq!(read(abi::PERF_RECORD_LOST_SAMPLES, &body), PerfRecord::Lost(7));
        assert_eq!(read(abi::PERF_RECORD_LOST, &body[..12]), PerfRecord::Other);
    }
}
