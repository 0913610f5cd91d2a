//! Kernel modules for an initramfs: in which order, and unpacked.
//!
//! ```text
//! wanted names ─┐
//! modules.builtin ── skipped ─┐
//! modules.dep ── or, where depmod never ran, each module's own .modinfo ("depends=")
//!               └──> dependencies first ──> each file read, unpacked ──> [Module], for finit_module in this order
//! ```

mod error;
mod index;
mod modinfo;

use std::collections::HashSet;
use std::path::Path;

use error::MAX_MODULES;
use index::{Index, normal};

pub use error::ModuleError;

use super::compression::{Compression, UnpackError, UnpackFault, zeroed};
use program::input::{self, FileKind};

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
        let most = FileKind::Module.most();
        let bytes = input::read(FileKind::Module, path)?;
        let unpacked = match Compression::of(&bytes) {
            Some(compression) => {
                unpack(compression, &bytes, most.min(left)).map_err(|failure| match failure {
                    UnpackError { fault: UnpackFault::Full, .. } if left < most => full(),
                    UnpackError { fault: UnpackFault::NoMemory(bytes), .. } => no_memory(bytes),
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
fn unpack(compression: Compression, bytes: &[u8], most: u64) -> Result<Vec<u8>, UnpackError> {
    let mut room = (bytes.len() as u64).saturating_mul(8).clamp(1 << 20, most.max(1 << 20)).min(most);
    loop {
        let mut unpacked = zeroed(room as usize).map_err(|fault| UnpackError { at: 0, fault })?;
        match compression.unpack(bytes, &mut unpacked) {
            Ok(len) => {
                unpacked.truncate(len);
                unpacked.shrink_to_fit();
                return Ok(unpacked);
            }
            Err(UnpackError { fault: UnpackFault::Full, .. }) if room < most => {
                room = room.saturating_mul(4).min(most)
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn describe(compression: Compression, UnpackError { at, fault }: UnpackError) -> String {
    match fault {
        UnpackFault::Truncated => format!("truncated: its {compression} stream ends at byte {at}"),
        UnpackFault::Full => format!("no module: it unpacks to more than {} bytes", FileKind::Module.most()),
        UnpackFault::Corrupt(why) => format!("damaged: its {compression} stream at byte {at}: {why}"),
        UnpackFault::Unsupported => format!("compressed with {compression}, which is not unpacked here"),
        UnpackFault::NoMemory(bytes) => format!("not unpacked: there is no memory for {bytes} bytes"),
    }
}

#[cfg(test)]
mod tests;
