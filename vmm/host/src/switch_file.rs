//! Switches: files of sysfs and procfs with one value.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::root::chosen_word;

/// Writes a switch, by one write; never creates the file.
pub(crate) fn write_switch(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Reads a switch: the bracketed word if there is one, else the whole text.
pub(crate) fn read_switch(path: &Path) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    Ok(chosen_word(&text).unwrap_or(text.trim()).to_owned())
}
