//! The event log on the disk: whole sections, one after another, each of them there when the next row begins.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::section::{Section, preamble};

/// A log being written.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    /// The end of the last whole section.
    end: u64,
}

impl LogFile {
    /// Makes a log without a section, which must not exist yet.
    ///
    /// # Errors
    /// It exists, or cannot be written.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut log = Self { file: File::create_new(path)?, end: 0 };
        // Without waiting for the disk, which takes longer than a machine takes to start: the first section brings it there.
        match log.write(&preamble()) {
            Ok(()) => Ok(log),
            Err(error) => {
                // Made here; half of it would be in the way of the next try.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Adds a section.
    ///
    /// # Errors
    /// The system refuses. Then nothing of the section is in the log, and it can be added again.
    pub fn append(&mut self, section: &Section) -> io::Result<()> {
        self.write(section.bytes())
    }

    /// Waits until all that was added is on the disk.
    ///
    /// # Errors
    /// The system does not say that it is. What was added stays: it may be there, and is better than nothing.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end).inspect_err(|_| self.cut(self.end))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Ends the log at `end`: a section cut short would be damage to a reader. If even that is refused, the next
    /// section overwrites it.
    fn cut(&mut self, end: u64) {
        self.end = end;
        let _ = self.file.set_len(end);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::fixture::{log as written, one_of_each, section};
    use super::super::{EventLog, RowEvents};
    use super::*;

    fn rows(path: &Path) -> Vec<RowEvents> {
        EventLog::new(std::io::BufReader::new(File::open(path).unwrap())).unwrap().rows().unwrap()
    }

    #[test]
    fn sections_are_there_as_soon_as_they_are_added() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.log");
        let mut log = LogFile::create(&path).unwrap();
        assert_eq!(rows(&path), []);
        for count in 1..3 {
            log.append(&section(&one_of_each())).unwrap();
            assert_eq!(rows(&path).len(), count);
        }
        assert!(LogFile::create(&path).is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists));
        assert_eq!(std::fs::read(&path).unwrap(), written(2));
    }

    /// A seal of a memfd refuses to let it grow, as a full disk does.
    #[test]
    fn what_does_not_fit_leaves_nothing_behind() {
        let memory = rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        let file = File::from(memory);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let mut log = LogFile { file: file.try_clone().unwrap(), end: 0 };
        log.write(&preamble()).unwrap();
        log.append(&section(&one_of_each())).unwrap();
        // Room for a half of the next.
        file.set_len(log.end + section(&one_of_each()).bytes().len() as u64 / 2).unwrap();
        rustix::fs::fcntl_add_seals(file.as_fd(), rustix::fs::SealFlags::GROW).unwrap();
        for _ in 0..2 {
            log.append(&section(&one_of_each())).unwrap_err();
            assert_eq!(rows(Path::new(&path)).len(), 1);
        }
    }
}
