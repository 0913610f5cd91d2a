//! Initramfs archives from a list of entries.

use std::collections::BTreeSet;

use linux_boot::cpio::{CpioError, Writer};

use crate::Trouble;

/// What an entry is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file that can be executed and read by all.
    File(Vec<u8>),
    /// A symbolic link.
    Link(String),
    /// An empty directory.
    Directory,
}

/// An entry: its path without a leading `/`, and what it is.
pub type Entry = (String, Content);

/// An archive of the entries and all directories above them.
pub fn archive(entries: &[Entry]) -> Result<Vec<u8>, Trouble> {
    written(entries).map_err(Trouble::broken("the initramfs"))
}

fn written(entries: &[Entry]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Writer::new(Vec::new());
    let mut made = BTreeSet::new();
    for (path, content) in entries {
        for (slash, _) in path.match_indices('/') {
            if made.insert(&path[..slash]) {
                archive.directory(&path[..slash], 0o755)?;
            }
        }
        match content {
            Content::File(data) => archive.file(path, 0o755, data.len() as u64, &mut &data[..])?,
            Content::Link(target) => archive.symlink(path, target)?,
            Content::Directory if made.insert(path) => archive.directory(path, 0o755)?,
            Content::Directory => {}
        }
    }
    archive.finish()
}
