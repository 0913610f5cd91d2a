//! Records of perf: a sample of a tracepoint, and the admission that some were lost.
//!
//! ```text
//!   PERF_RECORD_SAMPLE  │ pid tid │ time │ cpu 0 │ size │ the tracepoint's record … │ padding │
//!                         4   4      8     4   4    4                                  to 8
//!   PERF_RECORD_LOST    │ id │ how many │ …
//! ```
//!
//! The layout follows from the sample type that every event of ours is opened with.

use perf_event_open_sys::bindings as abi;

use super::hit::Sample;
use super::source::Heard;

/// What a sample holds, in this order.
pub(super) const SAMPLE_TYPE: u32 =
    abi::PERF_SAMPLE_TID | abi::PERF_SAMPLE_TIME | abi::PERF_SAMPLE_CPU | abi::PERF_SAMPLE_RAW;

/// Bytes before the tracepoint's own record.
pub(super) const BEFORE_RAW: usize = 28;

/// What a ring's record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Sample(Sample<'a>),
    Lost(u64),
    /// A sample that is none.
    Nonsense,
    /// A record of another type, or one too short for its type.
    Nothing,
}

impl Said<'_> {
    /// Hands a sample on, and adds losses to `lost`.
    #[inline]
    pub(super) fn tell(self, sink: &mut dyn FnMut(Heard<'_>), lost: &mut u64) {
        match self {
            Self::Sample(sample) => sink(Heard::Sample(sample)),
            Self::Lost(records) => *lost += records,
            Self::Nonsense => sink(Heard::Nonsense),
            Self::Nothing => {}
        }
    }
}

/// Reads a record of a ring.
pub(super) fn read(kind: u32, body: &[u8]) -> Said<'_> {
    match kind {
        abi::PERF_RECORD_SAMPLE => sample(body).map_or(Said::Nonsense, Said::Sample),
        abi::PERF_RECORD_LOST => word(body, 8).map_or(Said::Nothing, Said::Lost),
        abi::PERF_RECORD_LOST_SAMPLES => word(body, 0).map_or(Said::Nothing, Said::Lost),
        _ => Said::Nothing,
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

/// Writes a sample's body, as the kernel would.
pub(super) fn write_sample(out: &mut Vec<u8>, sample: &Sample<'_>, cpu: u32) {
    out.extend(sample.pid.to_le_bytes());
    out.extend(sample.tid.to_le_bytes());
    out.extend(sample.time_ns.to_le_bytes());
    out.extend([cpu, 0].map(u32::to_le_bytes).as_flattened());
    // The kernel pads so that the record as a whole is a multiple of 8, and counts the padding in.
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
            let Said::Sample(read) = read(abi::PERF_RECORD_SAMPLE, &body) else { panic!("a sample") };
            prop_assert_eq!((read.time_ns, read.pid, read.tid), (time_ns, pid, tid));
            prop_assert_eq!(&read.raw[..raw.len()], &raw[..]);
        }

        #[test]
        fn no_bytes_make_it_panic(kind in 0u32..20, body in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Said::Sample(sample) = read(kind, &body) {
                prop_assert!(sample.raw.len() + BEFORE_RAW <= body.len());
            }
        }
    }

    #[test]
    fn losses_are_read_from_both_records_that_tell_them() {
        let body = [7u64.to_le_bytes(), 41u64.to_le_bytes()].concat();
        assert_eq!(read(abi::PERF_RECORD_LOST, &body), Said::Lost(41));
        assert_eq!(read(abi::PERF_RECORD_LOST_SAMPLES, &body), Said::Lost(7));
        assert_eq!(read(abi::PERF_RECORD_LOST, &body[..12]), Said::Nothing);
    }
}
