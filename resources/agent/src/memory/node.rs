//! NUMA nodes: which one is set aside for the memory under test, and how much it still has.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

const NODES: &str = "/sys/devices/system/node";
const PAGE: u64 = 4096;

/// After so many rounds of vmstat without a change a CPU gives back the free pages it keeps of another node.
const IDLE_ROUNDS: usize = 3;

/// One NUMA node of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub id: u32,
    has_cpus: bool,
}

impl Node {
    /// The nodes with memory: the first with CPUs, where everything else lives, and the first without, which
    /// is there for the arena.
    ///
    /// # Errors
    /// One of the two is missing; the error says what the guest's kernel or its command line lacks.
    pub fn find() -> Result<(Self, Self)> {
        let nodes = Self::all()?;
        let first = |with_cpus| nodes.iter().copied().find(|node| node.has_cpus == with_cpus);
        let home = first(true).context("no NUMA node has both CPUs and memory")?;
        let arena = first(false).context(
            "no NUMA node has memory and no CPUs, so none is set aside for the arena: it needs an SRAT that puts the \
             memory into a node of its own, hot-pluggable, a kernel that reads it (CONFIG_ACPI_NUMA), and \
             `movable_node` on the command line",
        )?;
        Ok((home, arena))
    }

    fn all() -> Result<Vec<Self>> {
        let read = |path: String| fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"));
        ensure!(
            PathBuf::from(NODES).exists(),
            "the guest's kernel was built without NUMA (CONFIG_NUMA): no memory can be set aside for the arena"
        );
        let with_memory = parse_list(&read(format!("{NODES}/has_memory"))?);
        with_memory
            .into_iter()
            .map(|id| {
                let cpus = read(format!("{NODES}/node{id}/cpulist"))?;
                Ok(Self { id, has_cpus: !cpus.trim().is_empty() })
            })
            .collect()
    }

    /// How much may be allocated before the node falls below its watermarks, and the kernel begins to compact
    /// it, to reclaim from it and to look for a process to kill.
    pub fn room(self) -> Result<u64> {
        let text = fs::read_to_string("/proc/zoneinfo").context("/proc/zoneinfo cannot be read")?;
        Ok(zones(&text)
            .filter(|zone| zone.node == self.id)
            .map(|zone| zone.free.saturating_sub(zone.high) * PAGE)
            .sum())
    }

    /// Whether the kernel keeps its own allocations out of the node.
    pub fn is_movable(self) -> bool {
        let text = fs::read_to_string("/proc/zoneinfo").unwrap_or_default();
        zones(&text)
            .filter(|zone| zone.node == self.id && zone.managed > 0)
            .all(|zone| zone.name == "Movable")
    }

    /// Has the kernel put the node's free memory together, with what its CPUs keep at hand.
    pub fn tidy(self) {
        // A kernel that cannot has lost nothing: an allocation finds what it would have found.
        for _ in 0..=IDLE_ROUNDS {
            let _ = fs::write("/proc/sys/vm/stat_refresh", "1");
        }
        let _ = fs::write(format!("{NODES}/node{}/compact", self.id), "1");
    }

    /// The node's own `meminfo`; empty if it cannot be read.
    pub fn meminfo(self) -> String {
        fs::read_to_string(format!("{NODES}/node{}/meminfo", self.id)).unwrap_or_default()
    }
}

/// The kernel's reserve of free memory, lowered. A kernel with huge pages keeps tens of megabytes in every zone, which
/// would be out of reach, and as likely in the middle of a node as at its end.
pub struct Reserve(Option<String>);

impl Reserve {
    const PATH: &str = "/proc/sys/vm/min_free_kbytes";
    /// What the kernel would keep for itself in half a gigabyte without huge pages, and more than it needs for a moment.
    const LOW: u64 = 4096;

    /// Lowers it until the value is dropped.
    pub fn lower() -> Self {
        let before = fs::read_to_string(Self::PATH).ok();
        let before = before.filter(|text| text.trim().parse::<u64>().is_ok_and(|kib| kib > Self::LOW));
        Self(before.filter(|_| fs::write(Self::PATH, Self::LOW.to_string()).is_ok()))
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // It was written a moment ago.
            let _ = fs::write(Self::PATH, before);
        }
    }
}

/// The numbers in a list as the kernel prints it: `0-3,7`.
pub fn parse_list(text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<u32>()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Zone<'a> {
    node: u32,
    name: &'a str,
    free: u64,
    high: u64,
    managed: u64,
}

/// The zones of a `/proc/zoneinfo`.
fn zones(text: &str) -> impl Iterator<Item = Zone<'_>> {
    text.split("Node ").filter_map(|block| {
        let mut lines = block.lines();
        let (node, name) = lines.next()?.split_once(", zone ")?;
        let mut zone = Zone { node: node.parse().ok()?, name: name.trim(), ..Zone::default() };
        for line in lines {
            let mut words = line.split_whitespace();
            let (key, value) = match (words.next(), words.next(), words.next()) {
                (Some("pages"), Some("free"), Some(value)) => ("free", value),
                (Some(key), Some(value), None) => (key, value),
                _ => continue,
            };
            let Ok(value) = value.parse() else { continue };
            match key {
                "free" => zone.free = value,
                "high" => zone.high = value,
                "managed" => zone.managed = value,
                _ => {}
            }
        }
        Some(zone)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read_with_their_watermarks_and_not_those_of_a_pageset() {
        let text = "Node 0, zone   Normal\n  per-node stats\n      nr_mlock 0\n  pages free     1000\n        \
                    boost    0\n        min      11\n        low      20\n        high     31\n        \
                    spanned  9000\n        managed  8000\n        protection: (0, 0)\n      nr_free_pages 1000\n  \
                    pagesets\n    cpu: 0\n              count: 378\n              high:  378\n\
                    Node 1, zone  Movable\n  pages free     500\n        min      1\n        high     600\n        \
                    managed  700\n";
        let zones: Vec<_> = zones(text).collect();
        assert_eq!(zones[0], Zone { node: 0, name: "Normal", free: 1000, high: 31, managed: 8000 });
        assert_eq!(zones[1], Zone { node: 1, name: "Movable", free: 500, high: 600, managed: 700 });
        assert_eq!(zones.len(), 2);
    }

    #[test]
    fn lists_are_read_as_the_kernel_prints_them() {
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list("7"), [7]);
        assert!(parse_list("\n").is_empty());
    }
}
