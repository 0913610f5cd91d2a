//! The rows as a table for each case. No colours, no control characters: the same on a terminal and in a file.
//!
//! ```text
//!   heading          the case, what its rows share, and whether a guest ran at all
//!   !                where the kernel announced something else than was expected, before any number
//!   the rows         in the columns of which one of them knows something;
//!                    `*`: others took memory meanwhile; `(256)`: expected of the kernel and not measured
//!   could not run, *, notes
//! ```

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};

use experiment::record::{Measured, Row, RunRecord};

use super::caption;
use super::names::{Differences, grouped};
use program::units::{self, Charset};

/// A column: its heading, the key it shows, and the cell of a row.
struct Column {
    heading: &'static str,
    key: &'static str,
    cell: fn(&Row, Charset) -> Option<String>,
}

impl Column {
    /// Its heading on one line: `by the kernel`.
    fn title(&self) -> String {
        self.heading.replace("-\n", "").replace('\n', " ")
    }
}

/// The tables of a run's cases, each with what its rows share above it, and below it why rows are missing.
pub fn table(record: &RunRecord, charset: Charset) -> String {
    let rows: Vec<&Row> = record.rows.iter().collect();
    let cases = grouped(&rows, |row| row.label.case.as_str());
    let texts: Vec<String> = cases.iter().map(|(case, rows)| case_table(case, rows, charset)).collect();
    texts.join("\n")
}

fn case_table(case: &str, rows: &[&Row], charset: Charset) -> String {
    let differences = Differences::among(rows);
    let ran: Vec<&Row> = rows.iter().copied().filter(|row| row.could_not_run.is_none()).collect();
    let all = columns(differences, &ran);
    let titles: Vec<(&str, String)> =
        all.iter().flat_map(|column| column.key.split(' ').map(|key| (key, column.title()))).collect();
    // A column of dashes tells nothing; why it would be one is told below.
    let has_a_value = |column: &Column| ran.iter().any(|row| (column.cell)(row, charset).is_some());
    let columns: Vec<Column> = all.into_iter().filter(has_a_value).collect();
    let mut text = caption::heading(case, rows, differences) + "\n";
    for line in caption::differing(&ran, differences) {
        text.extend([" ", &line, "\n"]);
    }
    if !ran.is_empty() {
        let drawn = draw(&columns, &ran, charset);
        drawn.lines().for_each(|line| text.extend([line.trim_end(), "\n"]));
    }
    let below = caption::could_not_run(rows, differences)
        .into_iter()
        .chain(caption::disturbed(&ran, differences))
        .chain(caption::notes(&ran, &titles, differences));
    for line in below {
        text.extend([" ", &line, "\n"]);
    }
    text
}

/// A table without borders, with a rule below its headings.
pub(super) fn empty(charset: Charset) -> Table {
    let rule = match charset {
        Charset::Utf8 => '─',
        Charset::Ascii => '-',
    };
    let mut table = Table::new();
    table.load_style(TableStyle::new().header_separator(LineStyle::new(rule, rule, rule, rule)));
    table
}

fn draw(columns: &[Column], rows: &[&Row], charset: Charset) -> Table {
    let mut table = empty(charset);
    table.set_header(columns.iter().map(|column| column.heading));
    for row in rows {
        let missing = || charset.missing().to_owned();
        table.add_row(columns.iter().map(|column| (column.cell)(row, charset).unwrap_or_else(missing)));
    }
    for (drawn, column) in table.column_iter_mut().zip(columns) {
        drawn.set_padding((0, 1));
        // Words to the left, numbers to the right.
        let words = matches!(column.key, "backing achieved" | "policy" | "reclaim" | "zap");
        drawn.set_cell_alignment(if words { CellAlignment::Left } else { CellAlignment::Right });
    }
    table
}

fn columns(differences: Differences, ran: &[&Row]) -> Vec<Column> {
    [labels(differences), announcements(ran), prices(differences)].into_iter().flatten().collect()
}

const fn column(
    heading: &'static str,
    key: &'static str,
    cell: fn(&Row, Charset) -> Option<String>,
) -> Column {
    Column { heading, key, cell }
}

/// The columns that tell one row from another.
fn labels(differences: Differences) -> Vec<Column> {
    let mut columns = vec![
        column("backing", "backing achieved", |row, _| Some(backing(row))),
        column("policy", "policy", |row, _| Some(policy(row))),
    ];
    if differences.reclaim {
        columns.push(column("reclaim", "reclaim", |row, _| Some(row.label.tried.reclaim.to_string())));
    }
    if differences.granule {
        columns.push(column("slots", "granule", |row, _| Some(slot(row))));
    }
    if differences.zap {
        columns.push(column("zap", "zap", |row, _| Some(row.label.tried.zap.to_string())));
    }
    columns
}

/// The columns of what left, and of the ranges announced for it. Where the kernel's account was not kept, two columns of
/// dashes would tell nothing; where it is as expected, what was expected would tell nothing.
fn announcements(ran: &[&Row]) -> Vec<Column> {
    let mut columns = vec![
        column("evicted", "evicted_bytes", |row, _| row.evicted_bytes.get().map(units::bytes)),
        column("ranges", "invalidations", |row, _| announced(row, row.invalidations.get().map(units::count))),
        column("invali-\ndated", "invalidated_bytes", |row, _| {
            announced(row, row.invalidated_bytes.get().map(units::bytes))
        }),
    ];
    if ran.iter().any(|row| !row.kernel_ranges.is_null()) {
        columns.extend([
            column("by the\nkernel", "kernel_ranges", |row, _| row.kernel_ranges.get().map(units::count)),
            column("its\nbytes", "kernel_bytes", |row, _| row.kernel_bytes.get().map(units::bytes)),
        ]);
    }
    if ran.iter().any(|row| row.differs()) {
        columns.push(column("expec-\nted", "expected_bytes", |row, _| {
            row.expected_bytes.get().map(units::bytes)
        }));
    }
    columns
}

/// The columns of what it cost the guest and the host.
fn prices(differences: Differences) -> Vec<Column> {
    let mut columns = vec![
        column("amplifi-\ncation", "amplification", |row, _| {
            announced(row, row.amplification.get().map(units::times))
        }),
        column("zapped\n4k / 2m", "sptes_zapped_4k sptes_zapped_2m", sptes),
        column("refaults", "refaults", |row, _| row.refaults.get().map(units::count)),
        column("colla-\nteral", "collateral_faults", |row, _| row.collateral_faults.get().map(units::count)),
        column("zap\np50", "zap_ns", |row, charset| p50(&row.zap_ns, charset)),
        column("reclaim\np50", "reclaim_ns", |row, charset| p50(&row.reclaim_ns, charset)),
    ];
    if differences.reclaim {
        columns.push(column("out, a\nsecond", "evicted_bytes_per_second", |row, _| {
            row.evicted_bytes_per_second.get().map(|rate| units::bytes(rate as u64))
        }));
    }
    columns.extend([
        column("refault\np50 / p99", "refault_ns", stall),
        column("hot\nloop", "guest_touches_before guest_touches_during", |row, _| {
            row.hot_loop_ratio().map(units::percent)
        }),
    ]);
    columns
}

/// The size of a memslot.
fn slot(row: &Row) -> String {
    units::bytes(row.label.tried.granule.bytes())
}

/// The policy, and what to know before believing the row: see the [module](self).
fn policy(row: &Row) -> String {
    let mut text = row.label.tried.policy.to_string();
    let marks = [(row.differs(), '!'), (row.strangers() > 0, '*')];
    let set: String = marks.iter().filter(|(set, _)| *set).map(|(_, mark)| *mark).collect();
    if !set.is_empty() {
        text.extend([" ", &set]);
    }
    text
}

/// What was announced; in parentheses what was only expected.
fn announced(row: &Row, text: Option<String>) -> Option<String> {
    text.map(|text| if row.is_expected() { format!("({text})") } else { text })
}

/// The backing, and how much of it was really that if not all of it was.
fn backing(row: &Row) -> String {
    let asked = row.label.tried.backing.to_string();
    match row.achieved.as_ref() {
        Some(achieved) => units::label(&asked, Some(achieved.get(&asked).copied().unwrap_or(0.0))),
        // Something was taken, and what it was could not be seen.
        None if row.evicted_bytes.get().is_some_and(|bytes| bytes > 0) => format!("{asked} (?)"),
        None => asked,
    }
}

fn sptes(row: &Row, charset: Charset) -> Option<String> {
    let part = |count: &Measured<u64>| count.get().map_or(charset.missing().to_owned(), units::count);
    let known = !(row.sptes_zapped_4k.is_null() && row.sptes_zapped_2m.is_null());
    known.then(|| format!("{} / {}", part(&row.sptes_zapped_4k), part(&row.sptes_zapped_2m)))
}

fn p50(times: &Measured<program::distribution::Distribution>, charset: Charset) -> Option<String> {
    times.get()?.p50.map(|time| units::nanoseconds(time as f64, charset))
}

fn stall(row: &Row, charset: Charset) -> Option<String> {
    let times = row.refault_ns.get()?;
    let text = |time: u64| units::nanoseconds(time as f64, charset);
    Some(format!("{} / {}", text(times.p50?), text(times.p99?)))
}

#[cfg(test)]
mod tests;
