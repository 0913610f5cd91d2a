//! Initramfs archives: cpio in the "newc" format.

use std::collections::BTreeSet;

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

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive of the entries and all directories above them.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut made = BTreeSet::new();
    for (path, content) in entries {
        for (slash, _) in path.match_indices('/') {
            if made.insert(&path[..slash]) {
                push(&mut bytes, &path[..slash], S_IFDIR | 0o755, &[]);
            }
        }
        match content {
            Content::File(data) => push(&mut bytes, path, S_IFREG | 0o755, data),
            Content::Link(target) => push(&mut bytes, path, S_IFLNK | 0o777, target.as_bytes()),
            Content::Directory if made.insert(path) => push(&mut bytes, path, S_IFDIR | 0o755, &[]),
            Content::Directory => {}
        }
    }
    push(&mut bytes, "TRAILER!!!", 0, &[]);
    bytes
}

fn push(bytes: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
    let len = u32::try_from(data.len()).expect("no file of 4 GiB goes into an initramfs");
    let name_len = name.len() as u32 + 1;
    // Inode 0 throughout: nothing here has more than one link, so nobody looks at it.
    let fields = [0, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(data);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
