//! Where the time went, as a table for each case.

use comfy_table::{CellAlignment, Table};

use super::names::grouped;
use super::table::empty;
use crate::timeline::{CauseTime, RowTime};
use experiment::choice::{PolicyChoice, Reclaim};
use program::units::{self, Charset};

/// Columns of words; the others are numbers.
const WORDS: usize = 4;

const HEADINGS: [&str; 15] = [
    "backing",
    "policy",
    "reclaim",
    "cause",
    "ranges",
    "by the\nkernel",
    "zap",
    "operation",
    "guest\nheld",
    "guest\nrepairs",
    "faults",
    "retries",
    "flushes",
    "refault",
    "sweep",
];

const LEGEND: &str = "\
The first trial of each row. zap: time in our listeners, all ranges together; operation: in what follows inside the same
brackets, the kernel's calls and, for a page-out, looking what left and asking again.
guest held: time in which vCPUs stood still inside those brackets; guest repairs: outside them, while memory was taken.
faults, retries, flushes: what the secondary MMU counted while memory was taken; a retry let the guest in again without
an entry. What the kernel announced in one call stands with the last cause of that call. refault, sweep: time in which
the guest stood still when it read what was taken, and then all the rest. ranges: announced by us; under `kernel` nobody but
the kernel announces, and in parentheses stands what was expected of it.
";

/// The same where worker threads used the memory.
fn of_workers(text: &str) -> String {
    text.replace("the guest", "the worker threads")
        .replace("guest", "worker")
        .replace("vCPUs", "worker threads")
}

/// The table of each case, and what its columns say.
pub fn timeline(rows: &[RowTime], charset: Charset) -> String {
    let all: Vec<&RowTime> = rows.iter().collect();
    let mut text = String::new();
    for (case, rows) in grouped(&all, |row| row.label.case.as_str()) {
        let no_guest = if has_guest(&rows) { "" } else { " (NO GUEST RAN, worker threads used the memory)" };
        text.extend(["where the time went: ", case, no_guest, "\n"]);
        draw(&rows, charset).lines().for_each(|line| text.extend([line.trim_end(), "\n"]));
        rows.iter().flat_map(|row| notes(row, charset)).for_each(|note| text.extend([" ", &note, "\n"]));
        text.push('\n');
    }
    text + &if has_guest(&all) { LEGEND.to_owned() } else { of_workers(LEGEND) }
}

fn has_guest(rows: &[&RowTime]) -> bool {
    rows.is_empty() || rows.iter().any(|row| row.label.listener.has_guest())
}

fn draw(rows: &[&RowTime], charset: Charset) -> Table {
    let mut table = empty(charset);
    let guest = has_guest(rows);
    table.set_header(HEADINGS.map(|heading| if guest { heading.to_owned() } else { of_workers(heading) }));
    for row in rows {
        for (index, cause) in row.causes.iter().enumerate() {
            table.add_row(line(row, Some(cause), index == 0, charset));
        }
        if row.causes.is_empty() {
            table.add_row(line(row, None, true, charset));
        }
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        column.set_cell_alignment(if index < WORDS { CellAlignment::Left } else { CellAlignment::Right });
    }
    table
}

/// One cause's line. What belongs to the row and not to a cause stands in its first one alone, which has no cause where
/// nothing was announced.
fn line(row: &RowTime, cause: Option<&CauseTime>, first: bool, charset: Charset) -> [String; 15] {
    let label = &row.label;
    let time = |ns: u64| units::nanoseconds(ns as f64, charset);
    let number = |count: Option<u64>| count.map_or(charset.missing().to_owned(), units::count);
    let of_cause =
        |ns: fn(&CauseTime) -> u64| cause.map_or(charset.missing().to_owned(), |cause| time(ns(cause)));
    let rows_own = |text: String| if first { text } else { String::new() };
    [
        rows_own(label.tried.backing.to_string()),
        rows_own(label.tried.policy.to_string()),
        rows_own(label.tried.reclaim.to_string()),
        cause.map_or(charset.missing().to_owned(), |cause| cause.cause.clone()),
        match cause {
            Some(cause) if label.tried.policy == PolicyChoice::Kernel => {
                format!("({})", units::count(cause.announcements))
            }
            cause => number(cause.map(|cause| cause.announcements)),
        },
        number(cause.and_then(|cause| cause.kernel_ranges)),
        of_cause(|cause| cause.zap_ns),
        of_cause(|cause| cause.operation_ns),
        of_cause(|cause| cause.held.ns),
        rows_own(time(row.steps.reclaim.stalled.ns)),
        rows_own(number(row.counted.faults)),
        rows_own(number(row.counted.retries)),
        rows_own(number(row.counted.flushes)),
        rows_own(time(row.steps.refault.stalled.ns)),
        rows_own(time(row.steps.sweep.stalled.ns)),
    ]
}

/// The others that took memory in a row, and what its times lack.
fn notes(row: &RowTime, charset: Charset) -> Vec<String> {
    let label = &row.label;
    let name = label.tried.to_string();
    let mut notes = Vec::new();
    if !row.others.is_empty() {
        let each: Vec<String> = row
            .others
            .iter()
            .map(|other| format!("{} {}", other.cause, units::count(other.ranges)))
            .collect();
        notes.push(format!("{name}: the kernel announced beside: {}", each.join(", ")));
    }
    if label.tried.reclaim == Reclaim::Cgroup {
        notes.push(format!(
            "{name}: the cgroup chose, so its pages were announced once they were gone: the kernel's time and ranges are \
             outside the brackets"
        ));
    }
    if row.stalls_left_out > 0 {
        let stalls = units::count(row.stalls_left_out);
        notes.push(format!("{name}: {stalls} stalls are not in these sums: they found no room, or no clock"));
    }
    if row.clock_uncertain_ns > 0 {
        let uncertain = units::nanoseconds(row.clock_uncertain_ns as f64, charset);
        notes.push(format!(
            "{name}: the clock of who used the memory is known to {uncertain}: so far a held time may be off"
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use notifier_bridge::Cause;

    use super::*;
    use experiment::choice::Listener;
    use experiment::events::fixture::{bracket, range, row, stall};
    use experiment::events::{Counter, Event};
    use notifier_bridge::By;

    #[test]
    fn a_line_a_cause_and_the_rows_own_once() {
        let mut events = row(vec![bracket(0, Cause::FolioSplit), bracket(2_000, Cause::PageOut)]);
        events.events.extend([stall(500, 1_500), stall(12_000, 4_000)]);
        events.events.extend([range(2_400, 512, By::Khugepaged)]);
        events.events.push(Event::Clock { uncertain_ns: 2_000 });
        let text = timeline(&[RowTime::of(&events)], Charset::Ascii);
        let line = |cause: Cause| text.lines().find(|line| line.contains(cause.name())).unwrap();
        let cells = |line: &str| {
            line.split("  ").map(str::trim).filter(|c| !c.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let split = [
            "4k",
            "pmd",
            "pageout",
            Cause::FolioSplit.name(),
            "1",
            "0",
            "300 ns",
            "600 ns",
            "500 ns",
            "1 us",
            "8",
            "1",
            "-",
            "4 us",
            "0 ns",
        ];
        assert_eq!(cells(line(Cause::FolioSplit)), split, "{text}");
        assert_eq!(
            cells(line(Cause::PageOut)),
            [Cause::PageOut.name(), "1", "0", "300 ns", "600 ns", "0 ns"],
            "{text}"
        );
        assert!(text.contains("4k, pmd, pageout: the kernel announced beside: khugepaged 1"), "{text}");
        assert!(text.contains("known to 2 us"), "{text}");
    }

    #[test]
    fn what_was_expected_of_the_kernel_and_who_used_the_memory_is_told() {
        let mut events = row(vec![bracket(0, Cause::PageOut)]);
        let text = timeline(&[RowTime::of(&events)], Charset::Ascii);
        assert!(!text.contains("(1)") && text.contains("guest"), "{text}");
        if let Some(Event::Trial(setting)) = events.events.first_mut() {
            setting.label.tried.policy = PolicyChoice::Kernel;
            setting.label.listener = Listener::SoftMmu;
        }
        let text = timeline(&[RowTime::of(&events)], Charset::Ascii);
        assert!(text.lines().any(|line| line.contains("(1)")), "{text}");
        assert!(text.starts_with("where the time went: sparse (NO GUEST RAN"), "{text}");
        assert!(!text.contains("guest"), "{text}");
    }

    #[test]
    fn a_row_without_announcements_has_its_line_and_what_is_left_out_is_said() {
        let mut events = row(vec![]);
        events.events.extend([stall(12_000, 4_000)]);
        events.events.push(Event::Reading { counter: Counter::LostStalls, count: Some(3) });
        let text = timeline(&[RowTime::of(&events)], Charset::Ascii);
        assert!(text.lines().any(|line| line.starts_with(" 4k") && line.contains("4 us")), "{text}");
        assert!(text.contains("3 stalls are not in"), "{text}");
    }
}
