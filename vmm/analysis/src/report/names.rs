//! What to call a row among its neighbours: only what tells it from them.

use experiment::record::Row;

use program::units;

/// Which parts of the label tell the rows of a group apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Differences {
    pub policy: bool,
    pub reclaim: bool,
    pub granule: bool,
    /// Whether two rows differ in nothing but the zap: one that follows from the policy tells nothing.
    pub zap: bool,
}

impl Differences {
    pub fn among(rows: &[&Row]) -> Self {
        let differ = |same: fn(&Row, &Row) -> bool| rows.iter().any(|a| rows.iter().any(|b| !same(a, b)));
        let zap = rows.iter().any(|a| {
            rows.iter().any(|b| {
                let mut like_a = b.label.clone();
                like_a.tried.zap = a.label.tried.zap;
                a.label.tried.zap != b.label.tried.zap && like_a == a.label
            })
        });
        Self {
            policy: differ(|a, b| a.label.tried.policy == b.label.tried.policy),
            reclaim: differ(|a, b| a.label.tried.reclaim == b.label.tried.reclaim),
            granule: differ(|a, b| a.label.tried.granule == b.label.tried.granule),
            zap,
        }
    }

    /// The row's name, with its preposition: ``under `folio` ``, `with slots of 64 KiB`.
    pub fn name(self, row: &Row) -> String {
        let mut parts = Vec::new();
        if self.policy || !(self.granule || self.zap) {
            parts.push(format!("under `{}`", row.label.tried.policy));
        }
        if self.granule {
            parts.push(format!("with slots of {}", units::bytes(row.label.tried.granule.bytes())));
        }
        if self.zap {
            parts.push(format!("by `{}`", row.label.tried.zap));
        }
        parts.join(" ")
    }
}

/// What tells rows of a table apart, by the words of its columns.
fn axes(differences: Differences) -> Vec<fn(&Row) -> String> {
    let mut axes: Vec<fn(&Row) -> String> =
        vec![|row| row.label.tried.backing.to_string(), |row| row.label.tried.policy.to_string(), |row| {
            row.label.tried.reclaim.to_string()
        }];
    if differences.granule {
        axes.push(|row| units::bytes(row.label.tried.granule.bytes()));
    }
    if differences.zap {
        axes.push(|row| row.label.tried.zap.to_string());
    }
    axes
}

/// Some of a table's rows by the words of its columns, as few as name them: `thp kernel/folio; 4k kernel pageout`; the
/// empty text for all of them.
pub(super) fn which(some: &[&Row], all: &[&Row], differences: Differences) -> String {
    let axes = axes(differences);
    let distinct = |rows: &[&Row], axis: &fn(&Row) -> String| {
        let mut values: Vec<String> = Vec::new();
        for value in rows.iter().map(|row| axis(row)) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
        values
    };
    let values: Vec<Vec<String>> = axes.iter().map(|axis| distinct(some, axis)).collect();
    let named = |row: &&&Row| axes.iter().zip(&values).all(|(axis, values)| values.contains(&axis(row)));
    let splits = axes.iter().zip(&values).find(|(_, values)| values.len() > 1);
    match splits {
        // Their words name others, too: each of the first column's by itself.
        Some((axis, values)) if all.iter().filter(named).count() != some.len() => {
            let of = |value: &String| -> Vec<&Row> {
                some.iter().copied().filter(|row| axis(row) == *value).collect()
            };
            let parts: Vec<String> = values.iter().map(|value| which(&of(value), all, differences)).collect();
            parts.join("; ")
        }
        _ => {
            let telling =
                axes.iter().zip(&values).filter(|(axis, values)| distinct(all, axis).len() > values.len());
            telling.map(|(_, values)| values.join("/")).collect::<Vec<_>>().join(" ")
        }
    }
}

/// `one row`, `2 rows`.
pub(super) fn rows_in_words(count: usize) -> String {
    if count == 1 { "one row".to_owned() } else { format!("{count} rows") }
}

/// ``under `a`, `b` and `c` ``: a preposition that they share is said once.
pub(super) fn enumerate(names: &[String]) -> String {
    let Some((first, rest)) = names.split_first() else { return String::new() };
    let preposition = first.split_once(' ').map_or("", |(preposition, _)| preposition);
    let mut text = first.clone();
    for (index, name) in rest.iter().enumerate() {
        text.push_str(if index + 1 == rest.len() { " and " } else { ", " });
        let shared = name.strip_prefix(preposition).and_then(|name| name.strip_prefix(' '));
        text.push_str(shared.unwrap_or(name));
    }
    text
}

/// Runs of items with equal keys, in the order of each key's first appearance.
pub(super) fn grouped<'a, T, K: PartialEq>(
    items: &[&'a T],
    key: impl Fn(&'a T) -> K,
) -> Vec<(K, Vec<&'a T>)> {
    let mut groups: Vec<(K, Vec<&T>)> = Vec::new();
    for &item in items {
        let of_item = key(item);
        match groups.iter_mut().find(|(key, _)| *key == of_item) {
            Some((_, group)) => group.push(item),
            None => groups.push((of_item, vec![item])),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_preposition_is_said_once() {
        let names = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(enumerate(&names(&["under `a`"])), "under `a`");
        assert_eq!(enumerate(&names(&["under `a`", "under `b`", "under `c`"])), "under `a`, `b` and `c`");
        assert_eq!(enumerate(&names(&["under `a`", "by `c`"])), "under `a` and by `c`");
        assert_eq!(enumerate(&[]), "");
    }

    #[test]
    fn rows_are_named_by_the_columns_that_tell_them() {
        let rows: Vec<Row> = ["4k", "thp"]
            .iter()
            .flat_map(|backing| {
                ["kernel", "folio", "vm"].map(|policy| super::super::fixture::row(backing, policy))
            })
            .collect();
        let all: Vec<&Row> = rows.iter().collect();
        let named = |picked: &[usize]| {
            let some: Vec<&Row> = picked.iter().map(|&index| all[index]).collect();
            which(&some, &all, Differences::among(&all))
        };
        assert_eq!(named(&[0, 1, 2, 3, 4, 5]), "");
        assert_eq!(named(&[0, 3]), "kernel");
        assert_eq!(named(&[0, 1, 3, 4]), "kernel/folio");
        assert_eq!(named(&[3, 4, 5]), "thp");
        assert_eq!(named(&[5]), "thp vm");
        assert_eq!(named(&[0, 5]), "4k kernel; thp vm");
        assert_eq!(named(&[0, 1, 5]), "4k kernel/folio; thp vm");
        // Two rows of one name cannot be told apart, and that must end.
        assert_eq!(which(&[all[0]], &[all[0], all[0]], Differences::default()), "");
    }

    #[test]
    fn groups_keep_the_order_of_first_appearance() {
        let groups = grouped(&[&3, &4, &5, &6], |n| *n % 2);
        assert_eq!(groups, [(1, vec![&3, &5]), (0, vec![&4, &6])]);
    }
}
