//! Files of sysfs and procfs that are switches.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::root::chosen_word;

/// Writes a switch with one write and never creates it.
pub(crate) fn write_switch(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// The value of a switch: the bracketed word if it shows one, else the whole text.
pub(crate) fn read_switch(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    Ok(chosen_word(&text).unwrap_or(text.trim()).to_owned())
}
