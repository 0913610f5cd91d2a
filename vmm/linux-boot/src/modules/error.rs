//! Why modules could not be had.

use std::io;
use std::path::PathBuf;

use program::exit::{Class, Classified};
use program::input::InputError;
use program::units;

/// Files at most in a directory of modules. Debian's has 4,400.
pub(super) const MAX_FILES: usize = 200_000;
/// Modules at most in one load order. Debian's kernel comes with 1,100 in all.
pub(super) const MAX_MODULES: usize = 4096;

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
