use proptest::prelude::*;

use super::*;

const PAGE: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\
    \tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n\
    \tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n\
    \tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;\n";
const EVENTS: &str = "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n\
    \tarray       :   32 bits\n\n\tpadding     : type == 29\n\ttime_extend : type == 30\n\
    \ttime_stamp : type == 31\n\tdata max type_len  == 28\n";

fn layout() -> PageLayout {
    PageLayout::parse(PAGE, EVENTS).unwrap()
}

/// Writes a page as `rb_reserve_next_event` would.
struct Writer {
    page: Vec<u8>,
    time: u64,
}

impl Writer {
    fn new(time: u64) -> Self {
        let mut page = time.to_le_bytes().to_vec();
        page.extend([0; 8]);
        Self { page, time }
    }
    fn half(&mut self, half: u32) {
        self.page.extend(half.to_le_bytes());
    }
    fn event(&mut self, time: u64, record: &[u8]) {
        let mut delta = time - self.time;
        self.time = time;
        if delta >= 1 << DELTA_BITS {
            self.half((delta as u32 & ((1 << DELTA_BITS) - 1)) << 5 | TIME_EXTEND);
            self.half((delta >> DELTA_BITS) as u32);
            delta = 0;
        }
        let words = record.len().div_ceil(4);
        if (1..=28).contains(&words) && record.len().is_multiple_of(4) {
            self.half((delta as u32) << 5 | words as u32);
        } else {
            self.half((delta as u32) << 5);
            self.half(record.len() as u32 + 4);
        }
        self.page.extend_from_slice(record);
        self.page.resize(self.page.len().next_multiple_of(4), 0);
    }
    fn finish(mut self, flags: u64) -> Vec<u8> {
        let commit = (self.page.len() as u64 - 16) | flags;
        self.page[8..16].copy_from_slice(&commit.to_le_bytes());
        self.page.resize(4096, 0xaa);
        self.page
    }
}

fn read(page: &[u8]) -> Result<Vec<(u64, Vec<u8>)>, DamagedPage> {
    let mut records = Vec::new();
    layout().records(page, |time, record| records.push((time, record.to_vec())))?;
    Ok(records)
}

#[test]
fn padding_is_skipped_and_a_time_stamp_sets_the_time() {
    let mut writer = Writer::new(3 << STAMP_BITS | 5);
    writer.event((3 << STAMP_BITS) + 9, &[1; 8]);
    // A discarded record of 8 bytes.
    writer.half(1 << 5 | PADDING);
    writer.half(12);
    writer.page.extend([0; 8]);
    writer.half(77 << 5 | TIME_STAMP);
    writer.half(1);
    writer.time = 3 << STAMP_BITS | 1 << DELTA_BITS | 77;
    writer.event(writer.time + 2, &[2; 12]);
    // The rest of the page.
    writer.half(PADDING);
    writer.half(0xffff_ffff);
    let page = writer.finish(1 << 31);
    let expected =
        [((3 << STAMP_BITS) + 9, vec![1; 8]), ((3 << STAMP_BITS | 1 << DELTA_BITS) + 79, vec![2; 12])];
    assert_eq!(read(&page).unwrap(), expected);
}

#[test]
fn another_kind_of_buffer_is_refused_by_name() {
    let other = EVENTS.replace("27 bits", "26 bits");
    assert_eq!(PageLayout::parse(PAGE, &other), Err(FormatError::Missing("time_delta : 27 bits")));
    let other = PAGE.replace("commit", "commits");
    assert!(matches!(PageLayout::parse(&other, EVENTS), Err(FormatError::NoField { .. })));
}

#[test]
fn a_length_beyond_the_page_is_damage() {
    let mut writer = Writer::new(0);
    writer.half(0);
    writer.half(4000);
    assert_eq!(read(&writer.finish(0)), Err(DamagedPage { at: 16 }));
    assert_eq!(read(&[0; 12]), Err(DamagedPage { at: 8 }));
    let mut long = vec![0; 16];
    long[8] = 1;
    assert_eq!(read(&long), Err(DamagedPage { at: 8 }));
}

proptest! {
    #[test]
    fn what_was_written_is_read(base in 0u64..1 << 40, events in prop::collection::vec(
        (0u64..1 << 30, prop::collection::vec(any::<u8>(), 1..150)), 0..20)) {
        let (mut writer, mut time, mut expected) = (Writer::new(base), base, Vec::new());
        for (delta, record) in events {
            time += delta;
            writer.event(time, &record);
            expected.push((time, record));
        }
        prop_assert_eq!(read(&writer.finish(0)).unwrap(), expected);
    }

    #[test]
    fn no_page_makes_it_panic_or_run_on(page in prop::collection::vec(any::<u8>(), 0..200), commit in 0u64..200) {
        let mut page = page;
        if page.len() >= 16 {
            page[8..16].copy_from_slice(&commit.to_le_bytes());
        }
        let mut bytes = 0;
        let _ = layout().records(&page, |_, record| bytes += 4 + record.len());
        prop_assert!(bytes <= page.len());
    }
}
