//! The guest kernel's own counters, as text.

use std::fs;

use crate::memory::Node;

const VMSTAT: [&str; 7] =
    ["thp_", "pgfault ", "pgmajfault ", "pgmigrate_", "compact_", "unevictable_", "nr_anon_"];

/// The lines of `/proc/vmstat` and `/proc/meminfo` that speak of huge pages, faults and migration, and all of the node's
/// `meminfo`.
pub fn text(node: Node) -> String {
    let mut text = String::new();
    pick(&mut text, "/proc/vmstat", &VMSTAT);
    pick(&mut text, "/proc/meminfo", &["AnonHugePages:"]);
    text + &node.meminfo()
}

/// Adds the lines of a file that begin with one of `keys`. A file that cannot be read has none.
fn pick(text: &mut String, path: &str, keys: &[&str]) {
    let file = fs::read_to_string(path).unwrap_or_default();
    for line in file.lines().filter(|line| keys.iter().any(|key| line.starts_with(key))) {
        text.push_str(line);
        text.push('\n');
    }
}
