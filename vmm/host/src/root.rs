//! The root below which `/proc`, `/sys` and `/dev` are read: the host's own, or a captured copy in a test.

use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The directory under which `proc`, `sys` and `dev` lie.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self(PathBuf::from("/"))
    }
}

impl Root {
    /// A captured copy of another host's files.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The path below this root of `path`, which is given as on the host (`/sys/...`).
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The file's text without surrounding white space; `None` if it does not exist or may not be read.
    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = std::fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The number in the file.
    pub fn number<N: FromStr>(&self, path: &str) -> Option<N> {
        self.text(path)?.parse().ok()
    }

    /// A boolean parameter of the kernel or a module, in any of its spellings.
    pub fn flag(&self, path: &str) -> Option<bool> {
        parse_flag(&self.text(path)?)
    }

    /// The bracketed word of a switch.
    pub fn choice(&self, path: &str) -> Option<String> {
        chosen_word(&self.text(path)?).map(str::to_owned)
    }

    /// The names in a directory, sorted; empty if it cannot be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Whether the file or directory exists.
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.0.join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref())).exists()
    }
}

/// The bracketed word of a switch, as in `always [madvise] never`.
pub(crate) fn chosen_word(text: &str) -> Option<&str> {
    text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// Boolean parameters are `Y` or `N`, numbers, or words; each number but 0 is on.
fn parse_flag(text: &str) -> Option<bool> {
    match text {
        "Y" | "y" | "yes" | "on" | "true" => Some(true),
        "N" | "n" | "no" | "off" | "false" => Some(false),
        number => number.parse::<u64>().ok().map(|number| number != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bracketed_word_is_the_setting() {
        assert_eq!(chosen_word("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen_word("[lzo-rle] lzo lz4"), Some("lzo-rle"));
        assert_eq!(chosen_word("60"), None);
        assert_eq!(chosen_word("[odd"), None);
    }

    #[test]
    fn flags_are_spelt_in_many_ways() {
        assert_eq!(["Y", "1", "2"].map(parse_flag), [Some(true); 3]);
        assert_eq!(["N", "0", "off"].map(parse_flag), [Some(false); 3]);
        assert_eq!(parse_flag("maybe"), None);
    }

    #[test]
    fn absence_is_none_and_not_zero() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("sys")).unwrap();
        std::fs::write(tree.path().join("sys/number"), " 7\n").unwrap();
        let root = Root::at(tree.path());
        assert_eq!(root.number::<u64>("/sys/number"), Some(7));
        assert_eq!(root.number::<u64>("/sys/other"), None);
        assert_eq!(root.names("/sys"), ["number"]);
        assert!(root.exists("/sys/number") && !root.exists("/sys/other"));
    }
}
