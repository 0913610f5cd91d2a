use super::super::synthetic::{Producer, synthetic};
use super::super::tracepoints::{Interest, Sample, Work};
use super::*;
use guest_mem::Hva;

/// Formats of an invented kernel: some fields have other offsets, and most causes are missing.
fn layout() -> Layout {
    let interest = Interest { causes: true, ..Interest::default() };
    Layout::of(interest, |path| {
        let common = "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
                      \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n";
        let (id, fields) = match path {
            "kvm/kvm_unmap_hva_range" => (
                300,
                "\tfield:unsigned long end;\toffset:16;\tsize:8;\tsigned:0;\n\
                 \tfield:unsigned long start;\toffset:24;\tsize:8;\tsigned:0;\n",
            ),
            "vmscan/mm_vmscan_direct_reclaim_begin" => (301, ""),
            "vmscan/mm_vmscan_direct_reclaim_end" => (302, ""),
            other => {
                let path = other.to_owned();
                return Err(super::super::TracefsError { attempt: "reading", path, source: Errno::NOENT });
            }
        };
        Ok(format!("name: x\nID: {id}\nformat:\n{common}{fields}\nprint fmt: \"\"\n"))
    })
    .unwrap()
}

fn raw(id: u16, start: u64, end: u64) -> Vec<u8> {
    let mut raw = vec![0; 32];
    raw[..2].copy_from_slice(&id.to_le_bytes());
    raw[16..24].copy_from_slice(&end.to_le_bytes());
    raw[24..32].copy_from_slice(&start.to_le_bytes());
    raw
}

fn push(writer: &mut Producer, time_ns: u64, raw: &[u8]) {
    assert!(writer.push(&Sample { time_ns, pid: 7, tid: 8, raw }, 0));
}

fn range(start: u64, end: u64) -> HvaRange {
    HvaRange::new(Hva::new(start), Hva::new(end)).unwrap()
}

#[test]
fn events_are_selected_by_address_and_come_in_order_of_time() {
    let (source, mut writer) = synthetic(1 << 16).unwrap();
    let collector = Collector::start(Box::new(source), layout(), &[range(0x1000, 0x5000)], 64).unwrap();
    push(&mut writer, 30, &raw(300, 0x4000, 0x9000));
    push(&mut writer, 10, &raw(301, 0, 0));
    push(&mut writer, 20, &raw(300, 0x0, 0x1000));
    push(&mut writer, 40, &raw(999, 0x2000, 0x3000));
    push(&mut writer, 50, &raw(300, 0x3000, 0x2000));
    push(&mut writer, 60, &raw(302, 0, 0));
    let mut events = Vec::new();
    let seen = collector.take(&mut events).unwrap();
    let event = |time_ns, what| Event { time_ns, pid: 7, tid: 8, what };
    let expected = [
        event(10, What::Begin(Work::DirectReclaim)),
        event(30, What::Range(range(0x4000, 0x9000))),
        event(60, What::End(Work::DirectReclaim)),
    ];
    assert_eq!(events, expected);
    assert_eq!((seen.records, seen.elsewhere, seen.undecoded, seen.lost), (6, 1, 2, 0));
    assert_eq!(collector.tasks().iter().map(|task| (task.tid, task.pid)).collect::<Vec<_>>(), [(8, Some(7))]);
    assert_eq!(collector.missing().len(), 8);
    assert!(collector.missing().contains(&"compaction:mm_compaction_begin".to_owned()));
}

#[test]
fn the_reader_empties_the_ring_before_it_is_full() {
    let (source, mut writer) = synthetic(1 << 16).unwrap();
    let collector = Collector::start(Box::new(source), layout(), &[range(0, 0x1000)], 100_000).unwrap();
    let record = raw(300, 0, 0x1000);
    let mut sent = 0;
    while sent < 50_000 {
        let sample = Sample { time_ns: sent, pid: 7, tid: 8, raw: &record };
        // The writer waits for the reader, which must be woken by the watermark.
        if writer.push(&sample, 0) { sent += 1 } else { std::thread::yield_now() }
    }
    let mut events = Vec::new();
    collector.take(&mut events).unwrap();
    assert_eq!(events.len(), 50_000);
    assert!(events.iter().map(|event| event.time_ns).eq(0..50_000));
}

#[test]
fn a_collector_without_memory_for_its_events_is_refused() {
    let (source, _writer) = synthetic(1 << 16).unwrap();
    let refused = Collector::start(Box::new(source), layout(), &[range(0, 0x1000)], 1 << 58);
    let why = refused.map(drop).unwrap_err().to_string();
    assert!(why.contains("bytes of memory") && why.contains("ulimit -v"), "{why}");
}

#[test]
fn events_that_do_not_fit_into_the_buffer_are_counted() {
    let (source, mut writer) = synthetic(1 << 16).unwrap();
    let collector = Collector::start(Box::new(source), layout(), &[range(0, 0x1000)], 10).unwrap();
    (0..25).for_each(|time| push(&mut writer, time, &raw(300, 0, 0x1000)));
    let mut events = Vec::new();
    let seen = collector.take(&mut events).unwrap();
    assert!(events.len() >= 10);
    assert_eq!(events.len() as u64 + seen.lost, 25);
}

#[test]
fn a_layout_without_the_ranges_is_an_error_that_names_them() {
    let refused = Layout::of(Interest::default(), |path| {
        Err(super::super::TracefsError { attempt: "reading", path: path.to_owned(), source: Errno::NOENT })
    });
    assert!(refused.unwrap_err().to_string().contains("kvm:kvm_unmap_hva_range"));
}
