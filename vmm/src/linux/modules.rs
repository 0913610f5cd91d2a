//! Kernel modules for an initramfs: in which order, and unpacked.
//!
//! ```text
//! wanted names ─┐
//! modules.builtin ── skipped ─┐
//! modules.dep ── or, where depmod never ran, each module's own .modinfo ("depends=")
//!               └──> dependencies first ──> each file read, unpacked ──> [Module], for finit_module in this order
//! ```

mod index;
mod modinfo;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use index::Index;

use super::compression::{Compression, Failure, Fault};
use crate::exit::{Class, Classified};

/// The largest module file, packed or not. A graphics driver with its debug information has some 100 MiB.
const LARGEST: u64 = 256 << 20;
/// Modules at most in one load order. Debian's kernel comes with 1,100 in all.
const MAX_MODULES: usize = 4096;

/// Why modules could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// No such module.
    #[error("there is no module {name:?} in {}, and it is not built in{}", .directory.display(), wanted_by(.by.as_deref()))]
    Missing {
        /// Its name.
        name: String,
        /// The module that needs it, unless it was asked for.
        by: Option<String>,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A file or directory could not be read.
    #[error("{} cannot be read", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be unpacked.
    #[error("{} is {}", .path.display(), .why)]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Modules that need one another.
    #[error("the modules {0} need one another: no order loads them")]
    Cycle(String),
    /// Too many of them.
    #[error("more than {MAX_MODULES} modules would be loaded: ask for fewer")]
    TooMany,
}

impl Classified for ModuleError {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

fn wanted_by(by: Option<&str>) -> String {
    by.map(|by| format!(" (needed by {by:?})")).unwrap_or_default()
}

/// A module to be loaded.
#[derive(Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// The ELF object, unpacked.
    pub image: Vec<u8>,
}

/// Finds the `wanted` modules in a modules directory (`/lib/modules/RELEASE`), with all they need, in the order in
/// which they can be loaded. What is built into the kernel is left out.
///
/// # Errors
/// [`ModuleError`], with the name of the first module that is missing or the file that is damaged.
pub fn load_order(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>, ModuleError> {
    let index = Index::read(directory)?;
    let mut order =
        Order { index: &index, directory, modules: Vec::new(), done: HashSet::new(), open: Vec::new() };
    for name in wanted {
        order.add(&normal(name))?;
    }
    Ok(order.modules)
}

/// A module's name as the kernel writes it. Files and lists use `-` and `_` for one another.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

struct Order<'a> {
    index: &'a Index,
    directory: &'a Path,
    modules: Vec<Module>,
    done: HashSet<String>,
    /// The modules whose dependencies are being added, outermost first.
    open: Vec<String>,
}

impl Order<'_> {
    fn add(&mut self, name: &str) -> Result<(), ModuleError> {
        if self.done.contains(name) || self.index.is_builtin(name) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == name) {
            return Err(ModuleError::Cycle(self.open.join(", ")));
        }
        if self.open.len() + self.modules.len() >= MAX_MODULES {
            return Err(ModuleError::TooMany);
        }
        let entry = self.index.find(name).ok_or_else(|| ModuleError::Missing {
            name: name.to_owned(),
            by: self.open.last().cloned(),
            directory: self.directory.to_owned(),
        })?;
        let path = self.directory.join(&entry.path);
        let image = read(&path)?;
        let needs = match &entry.needs {
            Some(needs) => needs.clone(),
            None => modinfo::depends(&image).map_err(|why| ModuleError::Damaged { path, why })?,
        };
        self.open.push(name.to_owned());
        for needed in needs {
            self.add(&needed)?;
        }
        self.open.pop();
        self.done.insert(name.to_owned());
        self.modules.push(Module { name: name.to_owned(), image });
        Ok(())
    }
}

/// Reads a module's file and unpacks it.
fn read(path: &Path) -> Result<Vec<u8>, ModuleError> {
    let failed = |source| ModuleError::Read { path: path.to_owned(), source };
    let damaged = |why| ModuleError::Damaged { path: path.to_owned(), why };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    if len > LARGEST {
        return Err(damaged(format!("no module: it has {len} bytes")));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let unpacked = match Compression::of(&bytes) {
        Some(compression) => unpack(compression, &bytes).map_err(damaged)?,
        None => bytes,
    };
    if !unpacked.starts_with(b"\x7fELF") {
        return Err(damaged("no kernel module (no ELF file)".to_owned()));
    }
    Ok(unpacked)
}

/// Unpacks a file that does not say into how much.
fn unpack(compression: Compression, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut room = (bytes.len() as u64).saturating_mul(8).clamp(1 << 20, LARGEST);
    loop {
        let mut unpacked = vec![0; room as usize];
        match compression.unpack(bytes, &mut unpacked) {
            Ok(len) => {
                unpacked.truncate(len);
                unpacked.shrink_to_fit();
                return Ok(unpacked);
            }
            Err(Failure { fault: Fault::Full, .. }) if room < LARGEST => room = (room * 4).min(LARGEST),
            Err(Failure { at, fault }) => return Err(describe(compression, at, fault)),
        }
    }
}

fn describe(compression: Compression, at: usize, fault: Fault) -> String {
    match fault {
        Fault::Truncated => format!("truncated: its {compression} stream ends at byte {at}"),
        Fault::Full => format!("no module: it unpacks to more than {LARGEST} bytes"),
        Fault::Corrupt(why) => format!("damaged: its {compression} stream at byte {at}: {why}"),
        Fault::Unsupported => format!("compressed with {compression}, which is not unpacked here"),
    }
}

#[cfg(test)]
#[path = "modules/tests.rs"]
mod tests;
