//! `zapscope attach`.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use guest_mem::{Hva, HvaRange, with_causes};
use notifier_bridge::monotonic_ns;

use super::args::AttachArguments;
use super::changes;
use super::interrupt::cancel_on_signal;
use super::record_file::RecordFile;
use crate::attach::{self, Ended, Holder, Memory, Record, Session, Span};
use experiment::choice::ByteRange;
use experiment::record::utc;
use host::signals::Cancel;
use lab::NotKept;
use program::exit::{Class, Classified, Exit, Failure};
use program::output;
use program::units::Charset;
use tap::Via;

/// Lines after which the headings are repeated.
const PAGE: usize = 24;
/// The record grows with each span. It is written so seldom that writing takes at most one part in so many of the time.
const WRITING: u32 = 20;

/// A range of `--pageout` outside the guest's memory.
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

/// The record on the disk is not complete.
#[derive(Debug, thiserror::Error)]
#[error("the record is not complete: try again, or take the record from `--json`")]
struct Incomplete(#[source] NotKept);

impl Classified for Incomplete {
    fn class(&self) -> Class {
        Class::Fault
    }
}

pub fn attach(arguments: &AttachArguments) -> Result<Exit, Failure> {
    let cancel = cancel_on_signal()?;
    let name = format!("attach-{}", arguments.pid);
    let now = utc(SystemTime::now());
    let file = RecordFile::reserve(arguments.out.as_deref(), &now, &name, "attach.json", &[])?;
    let holder = Holder::open(arguments.pid)?;
    changes::undo_left();
    let session = open(holder, &arguments.memory)?;
    let record = Record::new(&session, now);
    let growing = Growing { record, file, due: Instant::now(), failed: false };
    Ok(if watch(arguments, session, &cancel, growing)? { Exit::Done } else { Exit::Wrong })
}

/// Watches until the time is over or a signal comes; returns whether the process still runs.
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
        let paged_out = attach::page_out(session.holder(), memory, range)?;
        say(&paged_out.sentence());
        growing.record.pageout = Some(paged_out);
    }
    growing.follow();
    let ended = loop {
        let left = arguments.length.map(|length| length.0.saturating_sub(since(begun)));
        let stopped =
            cancel.sleep(left.map_or(arguments.every.0, |left| left.min(arguments.every.0))).is_err();
        let alive = session.holder().is_alive();
        let mut span = match session.span() {
            Ok(span) => span,
            Err(error) => {
                // The spans until now are kept.
                growing.end(arguments, &Ended::Failed(with_causes(&error)))?;
                return Err(error.into());
            }
        };
        if !alive {
            // Its counters are gone: the last reading stands.
            span.counters.clone_from(&counters);
        }
        total.add(&span);
        if growing.record.spans().is_multiple_of(PAGE) {
            say(&attach::columns());
        }
        say(&attach::line(since(begun).as_secs_f64(), &span, &counters, charset));
        growing.record.add(&span, &total);
        counters = span.counters;
        match (alive, stopped, arguments.length) {
            (false, ..) => break Ended::ProcessGone,
            (_, true, _) => break Ended::Cancelled,
            (.., Some(length)) if since(begun) >= length.0 => break Ended::Complete,
            _ => growing.follow(),
        }
    };
    say("all");
    say(&attach::line(since(begun).as_secs_f64(), &total, &at_first, charset));
    let written = growing.end(arguments, &ended);
    let has_ended = matches!(ended, Ended::ProcessGone);
    if has_ended {
        output::message(session.holder().ended());
    }
    written.map(|()| !has_ended)
}

/// The growing record, which is on the disk while the watch goes on.
struct Growing {
    record: Record,
    file: RecordFile,
    /// When it is written again.
    due: Instant,
    /// Whether a failure to write it was reported.
    failed: bool,
}

impl Growing {
    /// Writes the record, if that is due.
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

    /// Writes the record for the last time. It is printed after that, so that a blocked output does not delay it.
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

/// By a BPF program, or by perf events where BPF is refused.
fn open(holder: Holder, memory: &[HvaRange]) -> Result<Session, Failure> {
    let pid = holder.pid();
    let by_bpf = Session::open(holder, memory, Via::Bpf);
    let Err(attach::SessionError::Tap(refused)) = by_bpf else { return Ok(by_bpf?) };
    let by_perf = Session::open(Holder::open(pid)?, memory, Via::Perf);
    if by_perf.is_err() {
        output::message(with_causes(&refused));
    }
    Ok(by_perf?)
}

/// The guest's largest mapping, and a range of it by addresses.
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
