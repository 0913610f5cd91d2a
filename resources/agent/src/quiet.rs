//! Turning off what the guest's kernel does to memory on its own.

use std::fs;

/// What is written where. A file that is not there belongs to a feature that is not there.
const SWITCHES: [(&str, &str); 5] = [
    // Locked memory stays where it is.
    ("/proc/sys/vm/compact_unevictable_allowed", "0"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
    ("/proc/sys/kernel/numa_balancing", "0"),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag", "0"),
    ("/sys/kernel/mm/ksm/run", "0"),
];

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Does so. Returns a line for each switch that is there and did not turn.
pub fn kernel() -> Vec<String> {
    SWITCHES.iter().filter_map(|(path, value)| write(path, value)).collect()
}

/// Lets memory that asks for huge pages have them, if the kernel was told never to, or does not because the guest
/// began with less than 512 MiB. Control areas ask for them also when the arena does not.
pub fn allow_huge_pages() -> Option<String> {
    let never = fs::read_to_string(THP).is_ok_and(|text| text.contains("[never]"));
    if never { write(THP, "madvise") } else { None }
}

fn write(path: &str, value: &str) -> Option<String> {
    if !fs::exists(path).unwrap_or(false) {
        return None;
    }
    fs::write(path, value).err().map(|error| format!("{path} cannot be set to {value}: {error}"))
}
