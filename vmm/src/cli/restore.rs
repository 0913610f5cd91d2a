//! `zapscope boot --restore`: the bare guest from a snapshot, and the cost of its start.

use std::path::Path;

use machine::Kvm;
use notifier_bridge::monotonic_ns;
use rustix::time::{ClockId, clock_gettime};

use super::args::RestoreArguments;
use super::interrupt::cancel_on_signal;
use super::snapshot::stop_when_told;
use super::tuned::Wanted;
use host::signals::Cancel;
use machine::snapshot::SnapshotError;
use machine::snapshot::file::Snapshot;
use machine::snapshot::record::{RestoreRecord, measure};
use machine::snapshot::restore::{How, Restored};
use program::exit::{Exit, Failure};
use program::output;
use program::units::{self, Charset};

pub fn restore(path: &Path, arguments: &RestoreArguments, tune: bool) -> Result<Exit, Failure> {
    let started = started();
    // First: a file that is not a snapshot is refused before anything is made.
    let snapshot = Snapshot::open(path)?;
    let kvm = Kvm::open()?;
    let cancel = cancel_on_signal()?;
    let (backing, bytes) = (snapshot.header.backing, snapshot.header.arena);
    Wanted { backing, bytes, tune }.while_tuned(|| match run(&snapshot, &kvm, arguments, &cancel, started) {
        Ok(record) => publish(&record, arguments.json),
        Err(_) if cancel.is_cancelled() => Ok(Exit::Interrupted),
        Err(error) => Err(error.into()),
    })
}

fn run(
    snapshot: &Snapshot,
    kvm: &Kvm,
    arguments: &RestoreArguments,
    cancel: &Cancel,
    started: u64,
) -> Result<RestoreRecord, SnapshotError> {
    let handlers = arguments.handlers.unwrap_or(snapshot.header.vcpus.min(16));
    let how = match arguments.eager {
        true => How::Eagerly,
        false => How::Lazily { around: arguments.fault_around, handlers },
    };
    let mut not_restored = Vec::new();
    let restored = Restored::new(kvm, snapshot, how, &mut |what| not_restored.push(what))?;
    stop_when_told(cancel, restored.stopper());
    for what in &not_restored {
        output::message(format_args!("this KVM does not take {what}"));
    }
    measure(restored, snapshot, how, started, not_restored)
}

/// The start of this process, by `CLOCK_MONOTONIC`. The kernel's own value has a resolution of 10 ms; a process does not sleep
/// before `main`, so that its CPU time is its age.
fn started() -> u64 {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64;
    monotonic_ns().saturating_sub(cpu)
}

fn publish(record: &RestoreRecord, json: bool) -> Result<Exit, Failure> {
    let text = text(record, Charset::of_locale(|name| std::env::var(name).ok()));
    if json {
        output::beside(&text);
        output::json(format_args!("{}\n", serde_json::to_string_pretty(record)?));
    } else {
        output::result(&text);
    }
    if record.is_sound() {
        return Ok(Exit::Done);
    }
    let (wrong, lost) = (record.wrong_pages, record.lost_writes);
    let (wrong, lost) = (units::counted(wrong, "page"), units::counted(lost, "write"));
    output::message(format_args!("{wrong} came back WRONG; LOST: {lost}"));
    Ok(Exit::Wrong)
}

fn text(record: &RestoreRecord, charset: Charset) -> String {
    let time = |nanoseconds: u64| units::nanoseconds(nanoseconds as f64, charset);
    let quantile = |value: Option<u64>| value.map_or_else(|| charset.missing().to_owned(), time);
    let (stalls, bytes, count) = (&record.stall_ns, units::bytes, units::count);
    let head = format!(
        "{}: vCPUs {}, memory {} + {}, {}",
        record.snapshot.display(),
        record.vcpus,
        bytes(record.low_bytes),
        bytes(record.memory_bytes),
        units::label(&record.backing, record.earned)
    );
    let how = match (&record.fault_around, record.handlers) {
        (Some(around), Some(handlers)) => format!("lazily: fault-around {around}, handlers {handlers}"),
        _ => "eagerly: all of it was read before the start".to_owned(),
    };
    let rows = [
        ("first KVM_RUN", format!("{} after exec", time(record.first_kvm_run_ns))),
        ("a page verified", time(record.first_page_verified_ns)),
        ("all verified", time(record.all_verified_ns)),
        ("written, verified", time(record.rewritten_verified_ns)),
        (
            "stalls",
            format!(
                "{}: p50 {}, p99 {}, {} together",
                count(stalls.count),
                quantile(stalls.p50),
                quantile(stalls.p99),
                time(stalls.sum)
            ),
        ),
        (
            "faults",
            format!(
                "{}, of them {} on code, tables and control areas",
                count(record.faults),
                count(record.low_faults)
            ),
        ),
        (
            "pages brought",
            format!(
                "{}, of them {} zeros; {} never asked for",
                count(record.pages_brought),
                count(record.zero_pages_brought),
                count(record.pages_left)
            ),
        ),
        ("read", format!("{} in {} calls", bytes(record.bytes_read), count(record.reads))),
        ("wrong pages", count(record.wrong_pages)),
    ];
    rows.iter()
        .fold(format!("{head}\n{how}\n"), |text, (name, value)| format!("{text}  {name:<18} {value}\n"))
}
