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

use super::compression::{Compression, Failure, Fault, zeroed};
use crate::exit::{Class, Classified};
use crate::input::{self, InputError, What};
use crate::report::units;

/// Files at most in a directory of modules. Debian's has 4,400.
const MAX_FILES: usize = 200_000;
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
    /// A file could not be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A directory could not be read.
    #[error("the directory of modules {} cannot be read{}", .path.display(), read_remedy(.source))]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// It is another kind of directory.
    #[error("{} has more than {MAX_FILES} files: it is no directory of modules", .0.display())]
    Crowded(PathBuf),
    /// Too much to be loaded.
    #[error(
        "the modules up to {} have more than {} together: give the guest more memory (`memory` in [linux]), or name its \
         own kernel's modules",
        .path.display(), units::bytes(*.room)
    )]
    Room {
        /// The first that does not.
        path: PathBuf,
        /// What there is for them.
        room: u64,
    },
    /// A file could not be unpacked.
    #[error("{} is {}", .path.display(), .why)]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It is no fault of the file.
    #[error("no memory for {bytes} bytes, to unpack {}: free memory on the host, or raise `ulimit -v`", .path.display())]
    NoMemory {
        /// The file or directory.
        path: PathBuf,
        /// What was asked for at once.
        bytes: u64,
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
        match self {
            Self::Input(error) => error.class(),
            Self::Directory { source, .. } => Class::of_named_file(source),
            Self::NoMemory { .. } => Class::Host,
            _ => Class::Mistake,
        }
    }
}

fn read_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ": name one with `--modules`",
        io::ErrorKind::PermissionDenied => ": give this user the right to",
        _ => "",
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
/// which they can be loaded. What is built into the kernel is left out. All of them together unpack to at most `room`
/// bytes: the guest's memory, into which they have to fit.
///
/// # Errors
/// [`ModuleError`], with the name of the first module that is missing or the file that is damaged.
pub fn load_order(directory: &Path, wanted: &[&str], room: u64) -> Result<Vec<Module>, ModuleError> {
    let index = Index::read(directory)?;
    let mut order = Order {
        index: &index,
        directory,
        modules: Vec::new(),
        room,
        used: 0,
        done: HashSet::new(),
        open: Vec::new(),
    };
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
    /// Bytes for all of them, and how many they have by now.
    room: u64,
    used: u64,
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
        let image = self.read(&path)?;
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

    /// Reads a module's file and unpacks it, if there is room for it beside the others.
    fn read(&mut self, path: &Path) -> Result<Vec<u8>, ModuleError> {
        let damaged = |why| ModuleError::Damaged { path: path.to_owned(), why };
        let full = || ModuleError::Room { path: path.to_owned(), room: self.room };
        let no_memory = |bytes| ModuleError::NoMemory { path: path.to_owned(), bytes };
        let left = self.room - self.used;
        let most = What::Module.most();
        let bytes = input::read(What::Module, path)?;
        let unpacked = match Compression::of(&bytes) {
            Some(compression) => {
                unpack(compression, &bytes, most.min(left)).map_err(|failure| match failure {
                    Failure { fault: Fault::Full, .. } if left < most => full(),
                    Failure { fault: Fault::NoMemory(bytes), .. } => no_memory(bytes),
                    failure => damaged(describe(compression, failure)),
                })?
            }
            None => bytes,
        };
        if unpacked.len() as u64 > left {
            return Err(full());
        }
        if !unpacked.starts_with(b"\x7fELF") {
            return Err(damaged("no kernel module (no ELF file)".to_owned()));
        }
        self.used += unpacked.len() as u64;
        Ok(unpacked)
    }
}

/// Unpacks a file that does not say into how much, to at most `most` bytes. The buffer grows with what comes out of it.
fn unpack(compression: Compression, bytes: &[u8], most: u64) -> Result<Vec<u8>, Failure> {
    let mut room = (bytes.len() as u64).saturating_mul(8).clamp(1 << 20, most.max(1 << 20)).min(most);
    loop {
        let mut unpacked = zeroed(room as usize).map_err(|fault| Failure { at: 0, fault })?;
        match compression.unpack(bytes, &mut unpacked) {
            Ok(len) => {
                unpacked.truncate(len);
                unpacked.shrink_to_fit();
                return Ok(unpacked);
            }
            Err(Failure { fault: Fault::Full, .. }) if room < most => room = room.saturating_mul(4).min(most),
            Err(failure) => return Err(failure),
        }
    }
}

fn describe(compression: Compression, Failure { at, fault }: Failure) -> String {
    match fault {
        Fault::Truncated => format!("truncated: its {compression} stream ends at byte {at}"),
        Fault::Full => format!("no module: it unpacks to more than {} bytes", What::Module.most()),
        Fault::Corrupt(why) => format!("damaged: its {compression} stream at byte {at}: {why}"),
        Fault::Unsupported => format!("compressed with {compression}, which is not unpacked here"),
        Fault::NoMemory(bytes) => format!("not unpacked: there is no memory for {bytes} bytes"),
    }
}

#[cfg(test)]
#[path = "modules/tests.rs"]
mod tests;
