//! The changes to the host in a run record: the switches under which its rows were measured.

use serde::{Deserialize, Serialize};

/// A change to the host, with the reason for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the fields' names say what they are")]
pub enum HostChange {
    /// A switch of sysfs or procfs; `to` is its value during the run.
    Switch { path: String, from: String, to: String, why: String },
    /// A zram device, by its device node.
    Zram { device: String, why: String },
    /// A cgroup.
    Cgroup { path: String, why: String },
    /// An instance of tracefs, as earlier versions made one.
    TraceInstance { name: String, why: String },
    /// A change of a kind that this version does not know.
    #[serde(other)]
    Unknown,
}
