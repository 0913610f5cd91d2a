//! Kernel modules: which others each needs, and their files, unpacked here because that takes long in an
//! emulated machine.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::Trouble;

/// A module, ready to be loaded.
pub struct Module {
    /// Where it lies below `/lib/modules/RELEASE`, ending in `.ko`.
    pub path: String,
    /// The ELF object.
    pub image: Vec<u8>,
}

/// The modules of one kernel.
pub struct Modules {
    /// Every module's file, by name.
    files: BTreeMap<String, PathBuf>,
    directory: PathBuf,
}

impl Modules {
    /// Reads a modules directory, `/lib/modules/RELEASE` of a package: depmod never ran there.
    pub fn read(directory: &Path) -> Result<Self, Trouble> {
        let mut files = BTreeMap::new();
        let mut open = vec![directory.join("kernel")];
        while let Some(next) = open.pop() {
            let entries = std::fs::read_dir(&next).map_err(Trouble::broken(next.display()))?;
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                if path.is_dir() {
                    open.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files, directory: directory.to_owned() })
    }

    /// The `wanted` modules and all they need, in the order in which they can be loaded. A wanted module without
    /// a file is built into the kernel.
    pub fn with_dependencies(&self, wanted: &[&str]) -> Result<Vec<Module>, Trouble> {
        let mut order = Vec::new();
        let mut done = Vec::new();
        for name in wanted {
            self.add(&normal(name), &mut done, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, done: &mut Vec<String>, order: &mut Vec<Module>) -> Result<(), Trouble> {
        let Some(file) = self.files.get(name).filter(|_| !done.iter().any(|other| other == name)) else {
            return Ok(());
        };
        done.push(name.to_owned());
        let image = unpacked(file)?;
        for needed in dependencies(&image) {
            self.add(&normal(&needed), done, order)?;
        }
        let below = file.strip_prefix(&self.directory).expect("every file was found below the directory");
        let path = below.to_string_lossy().trim_end_matches(".xz").to_owned();
        order.push(Module { path, image });
        Ok(())
    }
}

/// As the kernel writes it: files and lists use `-` and `_` for one another.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    Some(normal(file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?))
}

fn unpacked(file: &Path) -> Result<Vec<u8>, Trouble> {
    let packed = std::fs::File::open(file).map_err(Trouble::broken(file.display()))?;
    let mut image = Vec::new();
    let read = if file.extension().is_some_and(|extension| extension == "xz") {
        xz4rust::XzReader::new(packed).read_to_end(&mut image)
    } else {
        (&packed).read_to_end(&mut image)
    };
    read.map_err(Trouble::broken(file.display()))?;
    Ok(image)
}

/// What the module's `.modinfo` says it depends on: a NUL-terminated string of that section, and no other begins
/// like it.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = image.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = image[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list).into_owned();
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
