//! Which modules a directory has: by `modules.dep`, or by a walk through its files where depmod never ran.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::error::{MAX_FILES, ModuleError};
use program::input::{self, FileKind};

/// How deep below `kernel/` modules lie at most; on Debian it is seven.
const MAX_DEPTH: u32 = 32;

/// One module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its file, from the modules directory.
    pub path: PathBuf,
    /// The modules it needs; `None` where only its file says.
    pub needs: Option<Vec<String>>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub(super) struct Index {
    builtin: HashSet<String>,
    modules: HashMap<String, Entry>,
}

impl Index {
    pub(super) fn read(directory: &Path) -> Result<Self, ModuleError> {
        let builtin = read_list(&directory.join("modules.builtin"))?.unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line.trim()))).collect();
        let modules = match read_list(&directory.join("modules.dep"))? {
            Some(lines) => lines.lines().filter_map(parse_line).collect(),
            None => walk(directory)?,
        };
        Ok(Self { builtin, modules })
    }
    pub(super) fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }
    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        self.modules.get(name)
    }
}

/// A list's text, or `None` where there is no such file.
fn read_list(path: &Path) -> Result<Option<String>, ModuleError> {
    match input::read(FileKind::ModuleList, path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A line of `modules.dep`: a module's file, a colon, the files of all it needs.
fn parse_line(line: &str) -> Option<(String, Entry)> {
    let (path, needs) = line.split_once(':')?;
    let name = module_name(Path::new(path))?;
    let needs = needs.split_whitespace().filter_map(|path| module_name(Path::new(path))).collect();
    Some((name, Entry { path: path.into(), needs: Some(needs) }))
}

/// All module files below `kernel/` and the directories that distributions and users add beside it.
fn walk(directory: &Path) -> Result<HashMap<String, Entry>, ModuleError> {
    let mut modules = HashMap::new();
    let mut open = vec![(directory.to_owned(), 0)];
    let mut seen = 0;
    while let Some((at, depth)) = open.pop() {
        let failed = |source| ModuleError::Directory { path: at.clone(), source };
        for entry in std::fs::read_dir(&at).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            seen += 1;
            if seen > MAX_FILES {
                return Err(ModuleError::Crowded(directory.to_owned()));
            }
            // Of the entry itself: `build` and `source` are links out of the tree.
            let kind = entry.file_type().map_err(failed)?;
            let path = entry.path();
            if kind.is_dir() && depth < MAX_DEPTH {
                open.push((path, depth + 1));
            } else if kind.is_file() {
                let below = path.strip_prefix(directory).unwrap_or(&path).to_owned();
                modules.extend(module_name(&below).map(|name| (name, Entry { path: below, needs: None })));
            }
        }
    }
    Ok(modules)
}

/// The module's name that a file's name gives, `None` for other files.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    (!stem.is_empty()).then(|| normal(stem))
}

/// A module's name as the kernel writes it. Files and lists use `-` and `_` for one another.
pub(super) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_give_module_names() {
        let name = |path: &str| module_name(Path::new(path));
        assert_eq!(name("kernel/drivers/virtio/virtio-mmio.ko.xz").as_deref(), Some("virtio_mmio"));
        assert_eq!(name("zram.ko").as_deref(), Some("zram"));
        assert_eq!(name("a.b.ko.gz").as_deref(), Some("a.b"));
        for other in ["modules.dep", ".ko", "kernel/", "", "zram.ko.lz4", "zram.o"] {
            assert_eq!(name(other), None, "{other:?}");
        }
    }

    #[test]
    fn lines_of_modules_dep() {
        let (name, entry) = parse_line("kernel/a-b.ko.zst: kernel/c.ko.zst kernel/d-e.ko.zst").unwrap();
        assert_eq!(name, "a_b");
        assert_eq!(entry.needs.unwrap(), ["c", "d_e"]);
        assert_eq!(parse_line("kernel/a.ko:").unwrap().1.needs.unwrap(), Vec::<String>::new());
        assert_eq!(parse_line("# a comment"), None);
        assert_eq!(parse_line(""), None);
    }
}
