//! The messages between a run and its guardian, a line of JSON each.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::undo::UndoAction;

/// A message to the guardian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Open this log, lock it, and append to it.
    Log {
        /// The file.
        path: PathBuf,
    },
    /// A change is about to be made, which this action undoes.
    Plan {
        /// The change.
        id: u64,
        /// The action.
        action: UndoAction,
    },
    /// Make a zram device, and keep it as an outstanding change.
    AddZram {
        /// The change.
        id: u64,
    },
    /// The change was undone, or not made.
    Forget {
        /// The change.
        id: u64,
    },
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
    Zram {
        /// Its number.
        number: u32,
        /// Its serial number.
        diskseq: Option<u64>,
    },
    /// The device was not made.
    Failed {
        /// The kernel's answer, if the kernel refused.
        errno: Option<i32>,
        /// The reason, in words.
        why: String,
    },
}

/// One line of JSON, in which newlines are escaped.
pub(crate) fn to_line(message: &impl Serialize) -> io::Result<String> {
    let mut line = serde_json::to_string(message).map_err(io::Error::from)?;
    line.push('\n');
    Ok(line)
}
