//! What a run changed on its host: under which switches its rows were measured.

use serde::{Deserialize, Serialize};

/// One change, undone by now if it could be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum HostChange {
    /// A switch of sysfs or procfs.
    Switch {
        /// The file.
        path: String,
        /// What it said before.
        from: String,
        /// What it said then.
        to: String,
        /// What it was changed for.
        why: String,
    },
    /// A zram device.
    Zram {
        /// Its node.
        device: String,
        /// What it was changed for.
        why: String,
    },
    /// A cgroup.
    Cgroup {
        /// Its directory.
        path: String,
        /// What it was changed for.
        why: String,
    },
    /// An instance of tracefs, as earlier versions made one.
    TraceInstance {
        /// Its name.
        name: String,
        /// What it was changed for.
        why: String,
    },
    /// A change that a newer program made.
    #[serde(other)]
    Unknown,
}
