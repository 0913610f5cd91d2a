//! `zapscope attach`.

use std::time::{Duration, SystemTime};

use guest_mem::{Hva, HvaRange, PAGE_SIZE, with_causes};
use notifier_bridge::monotonic_ns;

use super::args::AttachArguments;
use super::cancel_on_signal;
use super::changes;
use super::record_file::RecordFile;
use crate::attach::{self, Holder, Memory, Record, Session, Span};
use crate::exit::{Class, Classified, Exit, Failure};
use crate::host::HostChanges;
use crate::host::signals::Cancel;
use crate::output;
use crate::record::utc;
use crate::report::Charset;
use crate::scenario::{BadRange, ByteRange};
use crate::tap::Via;

/// Lines after which the heads of the columns come again.
const PAGE: u32 = 24;

/// A range of memory that is not the guest's.
#[derive(Clone, Debug, thiserror::Error)]
#[error("--pageout {start:#x}..{end:#x} reaches beyond the {size:#x} bytes of the guest's largest mapping")]
struct Outside {
    start: u64,
    end: u64,
    size: u64,
}

impl Classified for Outside {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

/// A text that is no range of whole pages.
#[derive(Debug, thiserror::Error)]
pub enum BadPages {
    /// It is no range of bytes.
    #[error(transparent)]
    Range(#[from] BadRange),
    /// It begins or ends inside a page.
    #[error("`{given}` is not made of whole pages of 4 KiB: {start}..{end} is, around it")]
    Part {
        /// The text.
        given: String,
        /// The whole pages around it.
        start: u64,
        /// See `start`.
        end: u64,
    },
}

/// `0..64MiB`, in whole pages.
///
/// # Errors
/// It is not that.
pub fn pages(text: &str) -> Result<ByteRange, BadPages> {
    let range: ByteRange = text.parse()?;
    let end = range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(range.end);
    let whole = ByteRange { start: range.start / PAGE_SIZE * PAGE_SIZE, end };
    if whole == range && end.is_multiple_of(PAGE_SIZE) {
        return Ok(range);
    }
    Err(BadPages::Part { given: text.to_owned(), start: whole.start, end: whole.end })
}

/// A text that is no range of addresses.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{0}` is no range of addresses: write START-END in hexadecimal, as in /proc/PID/maps, whole pages")]
pub struct BadAddresses(String);

/// `7f0000000000-7f0010000000`.
///
/// # Errors
/// It is not that.
pub fn addresses(text: &str) -> Result<HvaRange, BadAddresses> {
    let bad = || BadAddresses(text.to_owned());
    let address = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| bad());
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let (start, end) = (address(start)?, address(end)?);
    let whole = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE) && start < end;
    HvaRange::new(Hva::new(start), Hva::new(end)).filter(|_| whole).ok_or_else(bad)
}

pub fn attach(arguments: &AttachArguments) -> Result<Exit, Failure> {
    let cancel = cancel_on_signal()?;
    let name = format!("attach-{}", arguments.pid);
    let now = utc(SystemTime::now());
    let out = RecordFile::reserve(arguments.out.as_deref(), &now, &name, "attach.json")?;
    let holder = Holder::open(arguments.pid)?;
    let changes = changes::begin();
    let watched = watch(arguments, out, holder, &changes, &cancel);
    let undone = changes.undo_all();
    undone.iter().for_each(output::message);
    Ok(match watched? {
        false => Exit::Wrong,
        true if !undone.is_empty() => Exit::Fault,
        true => Exit::Done,
    })
}

/// Watches until it is told to stop. Whether the process is still there then.
fn watch(
    arguments: &AttachArguments,
    out: RecordFile,
    holder: Holder,
    changes: &HostChanges,
    cancel: &Cancel,
) -> Result<bool, Failure> {
    let mut session = open(holder, &arguments.memory, changes)?;
    let charset = Charset::of_locale(|name| std::env::var(name).ok());
    let say = |text: &str| if arguments.json { output::progress(text) } else { output::live(text) };
    attach::heading(&session).lines().for_each(say);
    let mut record = Record::new(&session, out.started_at().to_owned());
    let begun = monotonic_ns();
    let (mut counters, mut total) = (session.counters(), Span::default());
    let at_first = counters.clone();
    if let Some(range) = arguments.pageout {
        let (memory, range) = in_largest(&session, range)?;
        let pushed = attach::page_out(session.holder(), memory, range)?;
        say(&pushed.told());
        record.pageout = Some(pushed);
    }
    let mut lines = 0;
    loop {
        let left = arguments.length.map(|length| length.0.saturating_sub(since(begun)));
        let stopped =
            cancel.sleep(left.map_or(arguments.every.0, |left| left.min(arguments.every.0))).is_err();
        let alive = session.holder().is_alive();
        let mut span = match session.span() {
            Ok(span) => span,
            Err(error) => {
                // What was seen until now is no less true.
                publish(arguments, &record, out)?;
                return Err(error.into());
            }
        };
        if !alive {
            // What its counters said last.
            span.counters.clone_from(&counters);
        }
        total.ns += span.ns;
        total.account.merge(&span.account);
        total.counters.clone_from(&span.counters);
        if lines % PAGE == 0 {
            say(&attach::columns());
        }
        lines += 1;
        say(&attach::line(since(begun).as_secs_f64(), &span, &counters, charset));
        record.add(&span, &total);
        counters = span.counters;
        let over = arguments.length.is_some_and(|length| since(begun) >= length.0);
        if stopped || over || !alive {
            say("all");
            say(&attach::line(since(begun).as_secs_f64(), &total, &at_first, charset));
            publish(arguments, &record, out)?;
            if !alive {
                output::message(session.holder().ended());
            }
            return Ok(alive);
        }
    }
}

/// By what changes nothing on the host, a BPF program or perf events; where they are refused by a tracefs instance, which
/// is removed again.
fn open(holder: Holder, memory: &[HvaRange], changes: &HostChanges) -> Result<Session, Failure> {
    let pid = holder.pid();
    let by_bpf = Session::open(holder, memory, &Via::Bpf);
    let Err(attach::SessionError::Tap(no_program)) = by_bpf else { return Ok(by_bpf?) };
    let by_perf = Session::open(Holder::open(pid)?, memory, &Via::Perf);
    let Err(attach::SessionError::Tap(refused)) = by_perf else { return Ok(by_perf?) };
    output::message(with_causes(&no_program));
    output::message(with_causes(&refused));
    let name = changes.make_trace_instance("to read the kernel's account of another VM")?;
    Ok(Session::open(Holder::open(pid)?, memory, &Via::Instance(name))?)
}

/// The guest's largest mapping, and the addresses of a range of it.
fn in_largest(session: &Session, range: ByteRange) -> Result<(&Memory, HvaRange), Outside> {
    let largest = session.memory().iter().max_by_key(|memory| memory.range.len());
    let size = largest.map_or(0, |memory| memory.range.len());
    let outside = Outside { start: range.start, end: range.end, size };
    let at = |memory: &Memory| {
        let start = Hva::new(memory.range.start().get() + range.start);
        HvaRange::with_len(start, range.end - range.start)
    };
    let largest = largest.filter(|_| range.end <= size).ok_or(outside.clone())?;
    at(largest).map(|range| (largest, range)).ok_or(outside)
}

fn since(begun: u64) -> Duration {
    Duration::from_nanos(monotonic_ns() - begun)
}

/// Writes the record first, so that no output that is not read keeps it from the disk.
fn publish(arguments: &AttachArguments, record: &Record, out: RecordFile) -> Result<(), Failure> {
    let json = record.to_json()?;
    let written = out.write(&json);
    if arguments.json {
        output::json(&json);
    }
    output::message(format_args!("the record is in {}", written?.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_whole_pages_in_hexadecimal() {
        let range = addresses("7f0000000000-0x7f0000200000").unwrap();
        assert_eq!((range.start().get(), range.len()), (0x7f00_0000_0000, 2 << 20));
        for bad in ["", "1000", "2000-1000", "1000-1000", "1-1000", "g-h", "-1000"] {
            assert!(addresses(bad).unwrap_err().to_string().contains("START-END"), "{bad}");
        }
    }

    #[test]
    fn what_is_paged_out_is_whole_pages() {
        assert_eq!(pages("4KiB..8MiB").unwrap(), ByteRange { start: 4096, end: 8 << 20 });
        assert!(pages("1..8192").unwrap_err().to_string().contains("0..8192 is"));
        assert!(pages("0..4097").unwrap_err().to_string().contains("0..8192 is"));
        assert!(pages("0..18446744073709551615").is_err());
        assert!(matches!(pages("8k..4k"), Err(BadPages::Range(_))));
    }
}
