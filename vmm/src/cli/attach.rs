//! `zapscope attach`.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use guest_mem::{Hva, HvaRange, PAGE_SIZE, with_causes};
use notifier_bridge::monotonic_ns;

use super::args::AttachArguments;
use super::cancel_on_signal;
use super::changes;
use super::record_file::RecordFile;
use crate::attach::{self, Ended, Holder, Memory, Record, Session, Span};
use crate::choice::{BadRange, ByteRange};
use crate::exit::{Class, Classified, Exit, Failure};
use crate::host::HostChanges;
use crate::host::signals::Cancel;
use crate::output;
use crate::record::utc;
use crate::report::Charset;
use crate::run::NotKept;
use crate::tap::Via;

/// Lines after which the heads of the columns come again.
const PAGE: u32 = 24;
/// The record is written after each span, and it grows: as seldom as it takes for the writing to be one part in so many of
/// the time.
const WRITING: u32 = 20;

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

/// What was seen is not all on the disk.
#[derive(Debug, thiserror::Error)]
#[error("the record is not complete: try again, or take the record from `--json`")]
struct Incomplete(#[source] NotKept);

impl Classified for Incomplete {
    fn class(&self) -> Class {
        Class::Fault
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
    let file = RecordFile::reserve(arguments.out.as_deref(), &now, &name, "attach.json", &[])?;
    let holder = Holder::open(arguments.pid)?;
    let changes = changes::begin();
    let watched = open(holder, &arguments.memory, &changes).and_then(|session| {
        let record = Record::new(&session, now);
        watch(arguments, session, &cancel, Growing { record, file, due: Instant::now(), failed: false })
    });
    let undone = changes::end(&changes);
    Ok(match watched? {
        false => Exit::Wrong,
        true if !undone => Exit::Fault,
        true => Exit::Done,
    })
}

/// Watches until it is told to stop. Whether the process is still there then.
fn watch(
    arguments: &AttachArguments,
    mut session: Session,
    cancel: &Cancel,
    mut growing: Growing,
) -> Result<bool, Failure> {
    let charset = Charset::of_locale(|name| std::env::var(name).ok());
    let say = |text: &str| if arguments.json { output::progress(text) } else { output::live(text) };
    attach::heading(&session).lines().for_each(say);
    let begun = monotonic_ns();
    let (mut counters, mut total) = (session.counters(), Span::default());
    let at_first = counters.clone();
    if let Some(range) = arguments.pageout {
        let (memory, range) = in_largest(&session, range)?;
        let pushed = attach::page_out(session.holder(), memory, range)?;
        say(&pushed.told());
        growing.record.pageout = Some(pushed);
    }
    growing.follow();
    let mut lines = 0;
    let ended = loop {
        let left = arguments.length.map(|length| length.0.saturating_sub(since(begun)));
        let stopped =
            cancel.sleep(left.map_or(arguments.every.0, |left| left.min(arguments.every.0))).is_err();
        let alive = session.holder().is_alive();
        let mut span = match session.span() {
            Ok(span) => span,
            Err(error) => {
                // What was seen until now is no less true.
                growing.end(arguments, &Ended::Failed(with_causes(&error)))?;
                return Err(error.into());
            }
        };
        if !alive {
            // What its counters said last.
            span.counters.clone_from(&counters);
        }
        total.add(&span);
        if lines % PAGE == 0 {
            say(&attach::columns());
        }
        lines += 1;
        say(&attach::line(since(begun).as_secs_f64(), &span, &counters, charset));
        growing.record.add(&span, &total);
        counters = span.counters;
        match (alive, stopped, arguments.length) {
            (false, ..) => break Ended::ProcessEnded,
            (_, true, _) => break Ended::Cancelled,
            (.., Some(length)) if since(begun) >= length.0 => break Ended::Complete,
            _ => growing.follow(),
        }
    };
    say("all");
    say(&attach::line(since(begun).as_secs_f64(), &total, &at_first, charset));
    let kept = growing.end(arguments, &ended);
    let alive = !matches!(ended, Ended::ProcessEnded);
    if !alive {
        output::message(session.holder().ended());
    }
    kept?;
    Ok(alive)
}

/// The record while it grows: what was seen so far is on the disk, whatever ends this program.
struct Growing {
    record: Record,
    file: RecordFile,
    /// When it is worth writing again.
    due: Instant,
    /// Whether it could not be written, and that was said.
    failed: bool,
}

impl Growing {
    /// Puts it on the disk as it stands, if that is due.
    fn follow(&mut self) {
        let begun = Instant::now();
        if begun < self.due {
            return;
        }
        let put = self.record.to_json().map_err(Failure::from).and_then(|json| Ok(self.put(&json)?));
        if let Err(why) = put
            && !std::mem::replace(&mut self.failed, true)
        {
            output::message(format_args!(
                "what is seen does not reach the disk: {}; the watching goes on, and it is tried again",
                with_causes(why.error())
            ));
        }
        self.due = Instant::now() + begun.elapsed() * WRITING;
    }

    /// Puts it on the disk for the last time, before it is printed, so that no output that is not read keeps it from there.
    fn end(&mut self, arguments: &AttachArguments, ended: &Ended) -> Result<(), Failure> {
        self.record.end(ended);
        let json = self.record.to_json()?;
        let put = self.put(&json);
        if arguments.json {
            output::json(&json);
        }
        output::message(format_args!("the record is in {}", put?.display()));
        Ok(())
    }

    fn put(&mut self, json: &str) -> Result<&Path, Incomplete> {
        self.file.put(json).map_err(Incomplete)?;
        Ok(self.file.path())
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
