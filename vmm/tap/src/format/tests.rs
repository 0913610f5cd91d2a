use proptest::prelude::*;

use super::*;

const UNMAP: &str = "name: kvm_unmap_hva_range\nID: 27\nformat:\n\
    \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
    \tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n\
    \tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n\
    \tfield:unsigned long start;\toffset:8;\tsize:8;\tsigned:0;\n\
    \tfield:unsigned long end;\toffset:16;\tsize:8;\tsigned:0;\n\
    \tfield:char comm[16];\toffset:24;\tsize:16;\tsigned:0;\n\n\
    print fmt: \"%#016lx field:x\", REC->start\n";

#[test]
fn a_format_of_the_kernel_is_read() {
    let format = Format::parse(UNMAP).unwrap();
    assert_eq!(format.id(), 27);
    let mut record = vec![27, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    record.extend(0x7f00_0000_1000u64.to_le_bytes());
    record.extend(0x7f00_0000_2000u64.to_le_bytes());
    assert_eq!(format.word("start").unwrap().read(&record), Some(0x7f00_0000_1000));
    assert_eq!(format.word("end").unwrap().read(&record), Some(0x7f00_0000_2000));
    assert_eq!(format.field("common_type").unwrap().read(&record), Some(27));
    assert_eq!(format.field("common_pid").unwrap().read(&record), Some(u64::MAX));
    assert_eq!(format.word("end").unwrap().read(&record[..23]), None);
}

#[test]
fn a_missing_field_is_named() {
    let format = Format::parse(UNMAP).unwrap();
    let lacking = format.field("gfn").unwrap_err().to_string();
    assert!(lacking.contains("kvm_unmap_hva_range") && lacking.contains("`gfn`"), "{lacking}");
    let long = format.field("comm").unwrap_err().to_string();
    assert!(long.contains("16 bytes"), "{long}");
    assert!(matches!(format.word("common_pid"), Err(FormatError::Size { size: 4, .. })));
}

#[test]
fn text_that_is_not_a_format_is_refused_with_its_line() {
    assert_eq!(Format::parse(""), Err(FormatError::Missing("name:")));
    assert_eq!(Format::parse("name: x\n"), Err(FormatError::Missing("ID:")));
    assert!(matches!(Format::parse("name: x\nID: 99999\n"), Err(FormatError::Line { line: 2, .. })));
    for field in
        ["int x", "int x; offset:1", "int x; offset:-1; size:4; signed:0;", "; offset:0; size:1; signed:0;"]
    {
        let text = format!("name: x\nID: 1\nformat:\n\tfield:{field}\n");
        assert!(matches!(Format::parse(&text), Err(FormatError::Line { line: 4, .. })), "{field}");
    }
    assert!(matches!(Format::parse(&"x".repeat(LONGEST + 1)), Err(FormatError::TooLong(_))));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,400}") {
        let _ = Format::parse(&text);
    }

    #[test]
    fn a_damaged_format_never_reads_beyond_its_record(
        at in 0..UNMAP.len(), with in "[ -~\n\t]{0,6}", record in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut text = UNMAP.to_owned();
        text.replace_range(at..(at + 3).min(UNMAP.len()), &with);
        let Ok(format) = Format::parse(&text) else { return Ok(()) };
        for name in ["common_type", "common_pid", "start", "end", "comm"] {
            if let Ok(field) = format.field(name) {
                let end = usize::from(field.offset) + usize::from(field.size);
                prop_assert_eq!(field.read(&record).is_some(), end <= record.len());
            }
        }
    }

    #[test]
    fn an_integer_reads_as_it_was_written(value: i64, offset in 0u16..40, size in prop::sample::select(vec![1u8, 2, 4, 8]),
                                          signed: bool) {
        let unused = 64 - 8 * u32::from(size);
        let cut = value << unused >> unused;
        let mut record = vec![0xa5; usize::from(offset)];
        record.extend(&value.to_le_bytes()[..usize::from(size)]);
        let expected = if signed { cut as u64 } else { (value as u64) << unused >> unused };
        prop_assert_eq!(Field { offset, size, signed }.read(&record), Some(expected));
    }
}
