//! By whom a range was announced.

use serde::{Deserialize, Serialize};

use crate::names::named_enum;

named_enum! {
    /// By whom a range was announced: whose work the thread that announced it was at. Beside it, [`Cause`](crate::Cause)
    /// tells the operation, where that is known: this process knows its own, and the kernel's tracepoints tell none.
    #[derive(Serialize, Deserialize)]
    pub enum By ("maker of a range") {
        /// A step's own operation.
        Step = "step",
        /// This process, beside its operations: a listener's zap, the write protection of a swapper.
        Zap = "zap",
        /// A vCPU's fault: copy-on-write, a NUMA hint.
        GuestFault = "guest-fault",
        /// A userfaultfd handler of ours.
        Userfault = "userfaultfd",
        /// A device of ours: the balloon.
        Device = "device",
        /// Another thread of ours.
        OwnThread = "own-thread",
        /// kswapd, on its own.
        Kswapd = "kswapd",
        /// khugepaged collapses.
        Khugepaged = "khugepaged",
        /// kcompactd compacts.
        Kcompactd = "kcompactd",
        /// ksmd merges.
        Ksmd = "ksmd",
        /// DAMON reclaims or moves.
        Kdamond = "kdamond",
        /// Another thread of the kernel.
        KernelThread = "kernel-thread",
        /// Somebody who found no free memory.
        DirectReclaim = "direct-reclaim",
        /// A cgroup's limit.
        MemcgReclaim = "memcg-reclaim",
        /// Somebody who made room for a large page.
        Compaction = "compaction",
        /// Somebody who moved pages.
        Migration = "migration",
        /// Another process.
        AnotherProcess = "another-process",
        /// Nobody knows.
        Unattributed = "unattributed",
    }
}

impl By {
    /// Whether this process made it, beside its steps.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Zap | Self::GuestFault | Self::Userfault | Self::Device | Self::OwnThread)
    }

    /// Whether neither the experiment nor this process made it: the host on its own, or another process.
    pub const fn is_stranger(self) -> bool {
        !self.is_ours() && !matches!(self, Self::Step | Self::Unattributed)
    }
}
