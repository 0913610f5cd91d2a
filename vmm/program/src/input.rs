//! Files that a user names: opened without blocking, checked for their type, read up to a limit.
//!
//! A path may lead to a pipe without a writer, a device without an end, or a growing file. So an open never blocks, and no
//! more is read than a file of its kind can have.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::exit::{Class, Classified};
use crate::units;

/// The purpose for which a file is named. Its text is the noun in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[expect(missing_docs, reason = "the nouns say what each is")]
pub enum FileKind {
    #[strum(to_string = "kernel")]
    Kernel,
    #[strum(to_string = "guest kernel")]
    GuestKernel,
    #[strum(to_string = "initrd")]
    Initrd,
    #[strum(to_string = "kernel module")]
    Module,
    /// As depmod writes it.
    #[strum(to_string = "list of modules")]
    ModuleList,
    /// An image, or a block device.
    #[strum(to_string = "disk")]
    Disk,
    #[strum(to_string = "snapshot")]
    Snapshot,
    #[strum(to_string = "scenario")]
    Scenario,
    #[strum(to_string = "run record")]
    RunRecord,
    #[strum(to_string = "event log")]
    EventLog,
}

impl FileKind {
    /// The limit on its bytes that are read into memory at once.
    pub fn most(self) -> u64 {
        match self {
            // A kernel with all drivers built in, without debug information, has some 100 MiB.
            Self::Kernel | Self::GuestKernel | Self::Initrd => 256 << 20,
            // A graphics driver with its debug information has some 100 MiB.
            Self::Module => 256 << 20,
            Self::ModuleList => 16 << 20,
            Self::Scenario => 1 << 20,
            // Thousands of rows.
            Self::RunRecord => 64 << 20,
            // Read in parts, each with its own limit.
            Self::Disk | Self::Snapshot | Self::EventLog => u64::MAX,
        }
    }

    fn takes_block_devices(self) -> bool {
        self == Self::Disk
    }

    /// What to name instead.
    fn wanted(self) -> &'static str {
        match self {
            Self::Kernel => "name a bzImage or an ELF vmlinux",
            Self::GuestKernel => "name an x86-64 ELF executable with a PVH note",
            Self::Initrd => "name a cpio archive",
            Self::Module | Self::ModuleList => "name a directory as `make modules_install` makes it",
            Self::Disk => "name a raw image or a block device",
            Self::Snapshot => "make one with `zapscope snapshot --out FILE`",
            Self::Scenario => "name a TOML file, or a built-in scenario",
            Self::RunRecord => "name the directory of a run",
            Self::EventLog => "keep the two files of a run together",
        }
    }
}

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum InputError {
    #[error("cannot open the {what} {}{}", path.display(), remedy(*what, source))]
    Open { what: FileKind, path: PathBuf, source: io::Error },
    #[error("the {what} {} is {kind}, and {}: {}", path.display(), neither(*what), what.wanted())]
    Kind { what: FileKind, path: PathBuf, kind: &'static str },
    /// `len` is known if the file was not read.
    #[error("the {what} {} has {}more than {}: {}", path.display(), length(*len), units::bytes(*most), what.wanted())]
    Large { what: FileKind, path: PathBuf, len: Option<u64>, most: u64 },
    #[error("cannot read the {what} {}", path.display())]
    Read { what: FileKind, path: PathBuf, source: io::Error },
}

impl Classified for InputError {
    fn class(&self) -> Class {
        match self {
            Self::Open { source, .. } => Class::of_named_file(source),
            Self::Kind { .. } | Self::Large { .. } => Class::Mistake,
            // A file that would block has no content.
            Self::Read { source, .. } if source.kind() == io::ErrorKind::WouldBlock => Class::Mistake,
            Self::Read { source, .. } => Class::of_named_file(source),
        }
    }
}

impl InputError {
    /// Whether the file does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn remedy(what: FileKind, source: &io::Error) -> String {
    let remedy = match Errno::from_io_error(source) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) | None => what.wanted(),
        Some(Errno::ACCESS | Errno::PERM) => "give this user the right to",
        Some(Errno::ROFS) => "its file system is read-only",
        Some(Errno::NOMEM) => "free memory on the host",
        Some(Errno::IO) => "see the kernel's log",
        Some(_) => return String::new(),
    };
    format!(": {remedy}")
}

fn neither(what: FileKind) -> &'static str {
    if what.takes_block_devices() { "neither a regular file nor a block device" } else { "no regular file" }
}

fn length(len: Option<u64>) -> String {
    len.map_or_else(String::new, |len| format!("{}, ", units::bytes(len)))
}

/// A named file, open for reading.
#[derive(Debug)]
pub struct Input {
    what: FileKind,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Input {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// [`InputError`]: it does not open, or is a directory, a pipe, a socket or a device.
    pub fn open(what: FileKind, path: &Path) -> Result<Self, InputError> {
        let file = open_for(what, path, OpenOptions::new().read(true))?;
        let len = file.metadata().map_err(|source| cannot_open(what, path, source))?.len();
        Ok(Self { what, path: path.to_owned(), file, len })
    }

    /// Its length when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }
    /// Whether that is 0.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The file, at its beginning.
    pub fn file(&self) -> &File {
        &self.file
    }
    /// The file, at its beginning.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Its content.
    ///
    /// # Errors
    /// [`InputError`]: it is larger than files of its kind, or cannot be read.
    pub fn read(self) -> Result<Vec<u8>, InputError> {
        let most = self.what.most();
        self.read_within(most)
    }

    fn read_within(self, most: u64) -> Result<Vec<u8>, InputError> {
        let Self { what, path, file, len } = self;
        if len > most {
            return Err(InputError::Large { what, path, len: Some(len), most });
        }
        let mut bytes = Vec::new();
        let failed = |source: io::Error| InputError::Read { what, path: path.clone(), source };
        bytes.try_reserve_exact(len as usize).map_err(|_| failed(Errno::NOMEM.into()))?;
        // It may have grown, and files of /proc have a length of 0.
        file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > most {
            return Err(InputError::Large { what, path, len: None, most });
        }
        Ok(bytes)
    }
}

/// The content of a file.
pub fn read(what: FileKind, path: &Path) -> Result<Vec<u8>, InputError> {
    Input::open(what, path)?.read()
}

/// Opens a file by `options`, if it is of a type that has an end.
pub fn open_for(what: FileKind, path: &Path, options: &mut OpenOptions) -> Result<File, InputError> {
    let failed = |source| cannot_open(what, path, source);
    // Before the open, which has an effect on some devices.
    check_kind(what, path, &path.metadata().map_err(failed)?)?;
    // A pipe would block until its other end is opened.
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    // Again, because the path may lead to another file by now.
    check_kind(what, path, &file.metadata().map_err(failed)?)?;
    Ok(file)
}

fn cannot_open(what: FileKind, path: &Path, source: io::Error) -> InputError {
    InputError::Open { what, path: path.to_owned(), source }
}

fn check_kind(what: FileKind, path: &Path, metadata: &Metadata) -> Result<(), InputError> {
    let kind = metadata.file_type();
    let kind = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_block_device() && what.takes_block_devices() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_char_device() => "a character device",
        _ if kind.is_block_device() => "a block device",
        _ => "something else",
    };
    Err(InputError::Kind { what, path: path.to_owned(), kind })
}

/// The number of bytes that [`beginning`] shows at most.
pub const BEGINNING: usize = 32;

/// Describes the beginning of a wrong file: of a text by its first line, else by its bytes.
pub fn beginning(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(BEGINNING)];
    let is_text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r');
    match bytes.split(|&byte| byte == b'\n').next() {
        Some(line) if !line.is_empty() && bytes.iter().all(is_text) => {
            format!(
                "a text file that begins with `{}`",
                String::from_utf8_lossy(line).trim_end().escape_debug()
            )
        }
        _ => format!("a file that begins with the bytes {:02x?}", &bytes[..bytes.len().min(8)]),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const ALL: [FileKind; 10] = [
        FileKind::Kernel,
        FileKind::GuestKernel,
        FileKind::Initrd,
        FileKind::Module,
        FileKind::ModuleList,
        FileKind::Disk,
        FileKind::Snapshot,
        FileKind::Scenario,
        FileKind::RunRecord,
        FileKind::EventLog,
    ];

    #[test]
    fn a_file_without_an_end_is_refused_without_blocking() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), fifo.0, fifo.1, 0).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        for (path, word) in [
            (at(""), "a directory"),
            (at("pipe"), "a pipe"),
            (at("socket"), "a socket"),
            ("/dev/zero".into(), "a character device"),
            ("/dev/full".into(), "a character device"),
        ] {
            for what in ALL {
                let error = Input::open(what, &path).unwrap_err();
                let said = error.to_string();
                assert!(said.contains(word) && said.contains(&what.to_string()), "{said}");
                assert!(said.contains(&path.display().to_string()), "{said}");
                assert_eq!(error.class(), Class::Mistake);
            }
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_refused_before_it_is_read() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("large");
        for what in ALL.into_iter().filter(|what| what.most() < u64::MAX) {
            File::create(&path).unwrap().set_len(what.most() + 1).unwrap();
            let error = read(what, &path).unwrap_err();
            assert!(matches!(error, InputError::Large { len: Some(_), .. }), "{error}");
            assert_eq!(error.class(), Class::Mistake);
        }
        std::fs::write(&path, [7; 100]).unwrap();
        let input = || Input::open(FileKind::Scenario, &path).unwrap();
        assert_eq!(input().read_within(100).unwrap(), [7; 100]);
        assert!(input().read_within(99).is_err());
        // A file that grows after it was opened.
        let grown = input();
        std::fs::write(&path, [7; 101]).unwrap();
        assert!(matches!(grown.read_within(100), Err(InputError::Large { len: None, .. })));
    }

    #[test]
    fn a_file_of_proc_with_length_0_is_read() {
        assert!(!read(FileKind::Scenario, Path::new("/proc/self/status")).unwrap().is_empty());
    }

    #[test]
    fn the_beginning_of_a_text_is_its_first_line() {
        for (bytes, said) in [
            (&b"#!/bin/sh\nexec true\n"[..], "a text file that begins with `#!/bin/sh`"),
            (b"one line that is far longer than what is looked at", "`one line that is far longer than`"),
            (b"a\tb\r\nc", "`a\\tb`"),
            (b"\x1b[31mred", "the bytes [1b, 5b, 33, 31, 6d, 72, 65, 64]"),
            (b"\n", "the bytes [0a]"),
            (b"", "the bytes []"),
        ] {
            assert!(beginning(bytes).ends_with(said), "{}", beginning(bytes));
        }
    }

    #[test]
    fn the_remedy_follows_from_the_error() {
        let error = Input::open(FileKind::Kernel, Path::new("/nowhere/vmlinuz")).unwrap_err();
        assert!(error.is_missing() && error.to_string().contains("bzImage"), "{error}");
        for (errno, word, class) in [
            (Errno::ACCESS, "the right to", Class::Mistake),
            (Errno::NOMEM, "free memory", Class::Host),
            (Errno::NOTDIR, "bzImage", Class::Mistake),
            (Errno::IO, "kernel's log", Class::Fault),
        ] {
            let error = cannot_open(FileKind::Kernel, Path::new("k"), errno.into());
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.class(), class, "{error}");
        }
    }
}
