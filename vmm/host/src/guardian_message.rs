//! What a run and its guardian say to each other, a line of JSON each.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::undo::UndoAction;

/// What a run tells its guardian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Note in this file what is undone, and hold it.
    Log {
        /// The file.
        path: PathBuf,
    },
    /// A change is about to be made; this would undo it.
    Plan {
        /// The change.
        id: u64,
        /// Its undoing.
        action: UndoAction,
    },
    /// Make a zram device, and remove it if need be.
    AddZram {
        /// The change.
        id: u64,
    },
    /// The change was undone, or not made after all.
    Forget {
        /// The change.
        id: u64,
    },
    /// All is undone.
    Done,
}

/// What a guardian says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// It has its own session and ignores signals, or it holds the log: changes may begin.
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
        /// What the kernel answered, if it was the kernel.
        errno: Option<i32>,
        /// The reason, in words.
        why: String,
    },
}

/// One line of JSON: a newline within is escaped there.
pub(crate) fn to_line(message: &impl Serialize) -> io::Result<String> {
    let mut line = serde_json::to_string(message).map_err(io::Error::from)?;
    line.push('\n');
    Ok(line)
}
