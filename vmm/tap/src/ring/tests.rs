use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::source::{Record, Source};
use super::super::synthetic::synthetic;
use super::super::tracepoints::Sample;
use super::*;

#[test]
fn records_are_read_as_written_over_many_turns_of_the_ring() {
    let (mut reader, mut writer) = synthetic(4096).unwrap();
    let (mut written, mut seen) = (0u64, Vec::new());
    for round in 0..400usize {
        // Lengths that do not divide the ring, so that records wrap around its end.
        let raw = vec![round as u8; 24 + round % 40];
        for _ in 0..=round % 9 {
            assert!(writer.push(&Sample { time_ns: written, pid: 1, tid: 2, raw: &raw }, 0));
            written += 1;
        }
        reader
            .drain(&mut |record| {
                let Record::Sample(sample) = record else { panic!("{record:?}") };
                assert!(sample.raw.windows(2).all(|pair| pair[0] == pair[1] || pair[1] == 0));
                seen.push(sample.time_ns);
            })
            .unwrap();
    }
    assert_eq!(seen, (0..written).collect::<Vec<_>>());
    assert!(writer.written() > 20 * 4096);
    assert_eq!(reader.lost(), 0);
}

#[test]
fn records_that_do_not_fit_are_counted_and_reported() {
    let (mut reader, mut writer) = synthetic(4096).unwrap();
    let raw = [0; 24];
    let push = |writer: &mut super::super::synthetic::Producer, time_ns| {
        writer.push(&Sample { time_ns, pid: 1, tid: 2, raw: &raw }, 0)
    };
    let stored = (0..100).filter(|&time| push(&mut writer, time)).count() as u64;
    assert!(stored < 100);
    let mut seen = 0;
    reader.drain(&mut |_| seen += 1).unwrap();
    assert_eq!((seen, reader.lost()), (stored, 0));
    assert!(push(&mut writer, 100));
    reader.drain(&mut |_| seen += 1).unwrap();
    assert_eq!(seen + reader.lost(), 101);
}

/// A ring over the test's own memory.
fn ring(head: u64, tail: u64, data: &[u64]) -> Ring {
    let memory = Mapping::anonymous(2 * 4096).unwrap();
    memory.word(HEAD).store(head, Ordering::Relaxed);
    memory.word(TAIL).store(tail, Ordering::Relaxed);
    for (at, &word) in data.iter().enumerate() {
        memory.word(4096 + 8 * at).store(word, Ordering::Relaxed);
    }
    Ring::new(Arc::new(memory), 4096)
}

#[test]
fn an_inconsistent_record_is_damage_and_the_ring_is_emptied() {
    let header = |length: u64| length << 48 | 9;
    for (head, tail, first) in [
        (64, 0, header(0)),
        (64, 0, header(4)),
        (64, 0, header(12)),
        (64, 0, header(72)),
        (8192, 0, header(8)),
        (4, 0, 0),
        (0, 8, 0),
    ] {
        let mut ring = ring(head, tail, &[first]);
        assert_eq!(ring.drain(|_, _| {}), Err(Damaged { position: tail }), "{head} {tail} {first:#x}");
        assert_eq!(ring.drain(|_, _| panic!("it was emptied")), Ok(()));
    }
}

proptest! {
    #[test]
    fn no_content_makes_it_panic_or_read_beyond(head: u64, tail: u64, data in prop::collection::vec(any::<u64>(), 512)) {
        for (head, tail) in [(head, tail), (tail.wrapping_add(head % 4096) & !7, tail & !7)] {
            let (mut ring, mut bytes) = (ring(head, tail, &data), 0);
            let _ = ring.drain(|_, body| bytes += HEADER + body.len());
            prop_assert!(bytes <= 4096);
        }
    }
}
