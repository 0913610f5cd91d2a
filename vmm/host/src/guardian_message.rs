//! The messages between a run and its guardian, a line of JSON each.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::undo::UndoAction;

/// A message to the guardian. `id` numbers the changes of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Open this log, lock it, and append to it.
    Log { path: PathBuf },
    /// A change is about to be made, which this action undoes.
    Plan { id: u64, action: UndoAction },
    /// Make a zram device, and keep it as an outstanding change.
    AddZram { id: u64 },
    /// The change was undone, or not made.
    Forget { id: u64 },
    /// All changes are undone: exit.
    Done,
}

/// A message of the guardian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// It has its own session and ignores signals; or it has locked the log.
    Ready,
    /// The device was made.
    Zram { number: u32, diskseq: Option<u64> },
    /// The device was not made; without an `errno` the kernel did not refuse.
    Failed { errno: Option<i32>, why: String },
}

/// One line of JSON, in which newlines are escaped.
pub(crate) fn to_line(message: &impl Serialize) -> io::Result<String> {
    let mut line = serde_json::to_string(message).map_err(io::Error::from)?;
    line.push('\n');
    Ok(line)
}
