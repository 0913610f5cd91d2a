//! The changes to the host in a run record: the switches under which its rows were measured.

use serde::{Deserialize, Serialize};

/// A change to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum HostChange {
    /// A switch of sysfs or procfs.
    Switch {
        /// The file.
        path: String,
        /// Its value before.
        from: String,
        /// Its value during the run.
        to: String,
        /// The reason.
        why: String,
    },
    /// A zram device.
    Zram {
        /// Its device node.
        device: String,
        /// The reason.
        why: String,
    },
    /// A cgroup.
    Cgroup {
        /// Its directory.
        path: String,
        /// The reason.
        why: String,
    },
    /// An instance of tracefs, as earlier versions made one.
    TraceInstance {
        /// Its name.
        name: String,
        /// The reason.
        why: String,
    },
    /// A change of a kind that this version does not know.
    #[serde(other)]
    Unknown,
}
