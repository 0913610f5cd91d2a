//! Why a guest has no memory to set aside.

use std::io;

use guest_abi::layout::ARENA_MAX;
use rustix::io::Errno;

/// Why the memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("an arena of {0} bytes: it must be a multiple of 2 MiB, not 0, at most {ARENA_MAX}")]
    Size(u64),
    #[error("{0} bytes are more than this agent can map")]
    TooLarge(u64),
    #[error(
        "the guest's kernel was built without NUMA (CONFIG_NUMA): no memory can be set aside for the arena"
    )]
    NoNuma,
    #[error("no NUMA node has both CPUs and memory")]
    NoHomeNode,
    #[error(
        "no NUMA node has memory and no CPUs, so none is set aside for the arena: it needs an SRAT that puts the memory \
         into a node of its own, hot-pluggable, a kernel that reads it (CONFIG_ACPI_NUMA), and `movable_node` on the \
         command line"
    )]
    NoArenaNode,
    #[error(
        "node {node} has {had} bytes to give, and {bytes} are wanted in one piece: give the node more memory"
    )]
    TooSmall { node: u32, bytes: u64, had: u64 },
    #[error(
        "node {node} does not have {bytes} contiguous bytes: {had} could be had, {longest} of them in one piece; give \
         the node more memory"
    )]
    Exhausted { node: u32, bytes: u64, had: u64, longest: u64 },
    #[error("node {0} has no huge page for a control area: are transparent huge pages compiled in?")]
    NoHugePage(u32),
    #[error("{0} pages are not there although they were just allocated")]
    Absent(u64),
    #[error("the kernel moved {0} pages while they were being gathered")]
    Moved(u64),
    #[error("{0}")]
    Call(&'static str, #[source] Errno),
    #[error("{0} cannot be read")]
    Read(String, #[source] io::Error),
}
