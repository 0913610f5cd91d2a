//! What the agent's initramfs contains.
//!
//! ```text
//!   /init                   the agent
//!   /dev/console, /dev/null for as long as there is no devtmpfs
//!   /modules/NN-name.ko     modules, in the order in which they are to be loaded
//! ```

/// One entry of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its path, without a leading slash. Directories come before what is in them.
    pub path: String,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory, mode 755.
    Directory,
    /// A file that is only read, mode 644.
    File(&'a [u8]),
    /// A program, mode 755.
    Program(&'a [u8]),
    /// A character device, mode 600.
    Device {
        /// The driver.
        major: u32,
        /// The driver's device.
        minor: u32,
    },
}

/// The archive's entries: `agent` as init, and `modules`, by file name without `.ko` and content, uncompressed, each
/// after those that it depends on.
pub fn entries<'a>(agent: &'a [u8], modules: &'a [(String, Vec<u8>)]) -> Vec<Entry<'a>> {
    let entry = |path: &str, kind| Entry { path: path.to_owned(), kind };
    let mut entries = vec![
        entry("dev", Kind::Directory),
        entry("dev/console", Kind::Device { major: 5, minor: 1 }),
        entry("dev/null", Kind::Device { major: 1, minor: 3 }),
        entry("modules", Kind::Directory),
        entry("init", Kind::Program(agent)),
    ];
    // As many digits as the last needs: the agent goes by the names' order.
    let digits = modules.len().to_string().len();
    entries.extend(modules.iter().enumerate().map(|(index, (name, content))| Entry {
        path: format!("modules/{index:0digits$}-{name}.ko"),
        kind: Kind::File(content),
    }));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_sort_in_the_order_they_were_given() {
        let modules: Vec<_> = (0..12).rev().map(|n| (format!("m{n}"), vec![n])).collect();
        let entries = entries(b"agent", &modules);
        let mut paths: Vec<_> = entries.iter().filter(|entry| matches!(entry.kind, Kind::File(_))).collect();
        paths.sort_by(|a, b| a.path.cmp(&b.path));
        let contents: Vec<_> = paths.iter().map(|entry| entry.kind).collect();
        assert_eq!(contents, modules.iter().map(|(_, bytes)| Kind::File(bytes)).collect::<Vec<_>>());
        assert_eq!(paths[0].path, "modules/00-m11.ko");
    }

    #[test]
    fn every_entry_comes_after_its_directory() {
        let modules = [("virtio".to_owned(), vec![1])];
        let entries = entries(b"agent", &modules);
        for (index, entry) in entries.iter().enumerate() {
            if let Some((parent, _)) = entry.path.rsplit_once('/') {
                let made = |before: &Entry<'_>| before.path == parent && before.kind == Kind::Directory;
                assert!(entries[..index].iter().any(made), "{}", entry.path);
            }
        }
        assert!(entries.contains(&Entry { path: "init".into(), kind: Kind::Program(b"agent") }));
    }
}
