//! Why a guest has no memory to set aside.

use std::io;

use guest_abi::layout::ARENA_MAX;
use rustix::io::Errno;

/// Why the memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size makes no sense.
    #[error("an arena of {0} bytes: it must be a multiple of 2 MiB, not 0, at most {ARENA_MAX}")]
    Size(u64),
    /// More than this agent can number.
    #[error("{0} bytes are more than this agent can map")]
    TooLarge(u64),
    /// No nodes.
    #[error(
        "the guest's kernel was built without NUMA (CONFIG_NUMA): no memory can be set aside for the arena"
    )]
    NoNuma,
    /// No node with CPUs.
    #[error("no NUMA node has both CPUs and memory")]
    NoHomeNode,
    /// No node without CPUs.
    #[error(
        "no NUMA node has memory and no CPUs, so none is set aside for the arena: it needs an SRAT that puts the memory \
         into a node of its own, hot-pluggable, a kernel that reads it (CONFIG_ACPI_NUMA), and `movable_node` on the \
         command line"
    )]
    NoArenaNode,
    /// The node does not have as much.
    #[error(
        "node {node} has {had} bytes to give, and {bytes} are wanted in one piece: give the node more memory"
    )]
    TooSmall {
        /// The NUMA node's number.
        node: u32,
        /// What was wanted.
        bytes: u64,
        /// What is free above the kernel's reserve.
        had: u64,
    },
    /// The node does not have it in one piece.
    #[error(
        "node {node} does not have {bytes} contiguous bytes: {had} could be had, {longest} of them in one piece; give \
         the node more memory"
    )]
    Exhausted {
        /// The NUMA node's number.
        node: u32,
        /// What was wanted.
        bytes: u64,
        /// What was there.
        had: u64,
        /// The longest aligned run.
        longest: u64,
    },
    /// A control area is in pieces.
    #[error("node {0} has no huge page for a control area: are transparent huge pages compiled in?")]
    NoHugePage(u32),
    /// The kernel gave memory, and it is not there.
    #[error("{0} pages are not there although they were just allocated")]
    Absent(u64),
    /// The kernel moved pages while they were being gathered.
    #[error("the kernel moved {0} pages while they were being gathered")]
    Moved(u64),
    /// A system call failed.
    #[error("{0}")]
    Call(&'static str, #[source] Errno),
    /// A file could not be read.
    #[error("{0} cannot be read")]
    Read(String, #[source] io::Error),
}
