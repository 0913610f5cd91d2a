//! Predicted against measured, row by row.

use crate::replay::{Check, Judgement};
use experiment::record::Row;
use program::output::visible;

use program::units::{self, Charset};

/// A line for each row: the counts that must be equal, then refaults and collateral faults, predicted and measured; below
/// it why something cannot be said.
pub fn comparison(rows: &[(&Row, Vec<Check>)], charset: Charset) -> String {
    let mut text = String::from("predicted / measured\n");
    for (row, checks) in rows {
        let name = row.label.to_string();
        if let Some(why) = &row.could_not_run {
            text.extend([" ", &name, ": could not run: ", &visible::item(why), "\n"]);
            continue;
        }
        let exact = checks.iter().filter(|check| !is_fault(check));
        let differing: Vec<String> = exact
            .clone()
            .filter(|check| check.judgement == Judgement::Differs)
            .map(|check| pair(check, charset))
            .collect();
        let agree = exact.filter(|check| check.judgement == Judgement::Agrees).count();
        let faults: Vec<String> =
            checks.iter().filter(|check| is_fault(check)).map(|check| pair(check, charset)).collect();
        let verdict = match differing.is_empty() {
            true => format!("{} equal", units::counted(agree as u64, "count")),
            false => format!("DIFFERENT: {}", differing.join(", ")),
        };
        text.extend([" ", &name, ": ", &verdict, "; ", &faults.join(", "), "\n"]);
        for check in checks {
            if let Judgement::Undecided(why) = &check.judgement {
                text.extend(["   ", check.key, ": ", &visible::item(why), "\n"]);
            }
        }
    }
    text
}

fn is_fault(check: &Check) -> bool {
    matches!(check.key, "refaults" | "collateral_faults")
}

/// `collateral_faults 2,454 / 2,460 (-0.2 %)`.
fn pair(check: &Check, charset: Charset) -> String {
    let number = |value: Option<u64>| value.map_or(charset.missing().to_owned(), units::count);
    let apart = match (check.predicted, check.measured) {
        (Some(ours), Some(theirs)) if theirs > 0 && ours != theirs => {
            format!(" ({:+.1} %)", (ours as f64 / theirs as f64 - 1.0) * 100.0)
        }
        _ => String::new(),
    };
    let wrong = if check.judgement == Judgement::Differs { " DIFFERENT" } else { "" };
    format!("{} {} / {}{apart}{wrong}", check.key, number(check.predicted), number(check.measured))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn a_line_says_what_agrees_and_what_does_not() {
        let row = fixture::row("4k", "pmd");
        let check = |key, predicted, measured, judgement| Check {
            key,
            predicted: Some(predicted),
            measured: Some(measured),
            judgement,
        };
        let checks = vec![
            check("victims", 256, 256, Judgement::Agrees),
            check("invalidations", 256, 257, Judgement::Differs),
            check("collateral_faults", 1_100, 1_000, Judgement::Undecided("its speed".to_owned())),
        ];
        let text = comparison(&[(&row, checks)], Charset::Ascii);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            " sparse, 4k, pmd, pageout: DIFFERENT: invalidations 256 / 257 (-0.4 %) DIFFERENT; collateral_faults 1,100 / \
             1,000 (+10.0 %)"
        );
        assert_eq!(lines[2], "   collateral_faults: its speed");
    }
}
