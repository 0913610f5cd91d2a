//! Descriptors that came from elsewhere: with a fork, or from another process.

use std::os::fd::{AsRawFd, OwnedFd};

use guest_mem::remedy::{self, Asked};
use rustix::fs::OFlags;

use crate::features::Features;
use crate::handle::Userfault;

/// Why a descriptor from elsewhere cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is something else, or had no handshake yet.
    #[error("descriptor {0} is not a userfaultfd after its handshake")]
    NotUserfault(i32),
    /// It could not be asked.
    #[error("reading what descriptor {fd} is{}", remedy::after_io(Asked::Procfs, source))]
    Unknown {
        /// The descriptor's number.
        fd: i32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl Userfault {
    /// Uses a descriptor that came from elsewhere: with [`crate::Event::Fork`], or from another process. Its
    /// features are read from procfs. The addresses are those of the process it was made for.
    ///
    /// # Errors
    /// It is none.
    pub fn adopt(fd: OwnedFd) -> Result<Self, AdoptError> {
        let raw = fd.as_raw_fd();
        let unknown = |source| AdoptError::Unknown { fd: raw, source };
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{raw}")).map_err(unknown)?;
        let link = std::fs::read_link(format!("/proc/self/fd/{raw}")).map_err(unknown)?;
        let features = parse_fdinfo(&info).filter(|_| link.as_os_str() == "anon_inode:[userfaultfd]");
        let features = features.ok_or(AdoptError::NotUserfault(raw))?;
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|errno| unknown(errno.into()))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|errno| unknown(errno.into()))?;
        Ok(Self { fd, features })
    }
}

/// The features in `API: aa:<features>:<ioctls>`. Bit 31 is the kernel's own mark that the handshake was done.
fn parse_fdinfo(info: &str) -> Option<Features> {
    const INITIALIZED: u64 = 1 << 31;
    let line = info.lines().find_map(|line| line.strip_prefix("API:"))?;
    let (api, rest) = line.trim().split_once(':')?;
    let (features, _) = rest.split_once(':')?;
    let features = u64::from_str_radix(features, 16).ok()?;
    (api == "aa" && features & INITIALIZED != 0).then(|| Features::from_bits(features & !INITIALIZED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_fdinfo() {
        let info = "pos:\t0\nflags:\t02004000\npending:\t1\ntotal:\t1\nAPI:\taa:80000008:80000000000001ff\n";
        assert_eq!(parse_fdinfo(info), Some(Features::EVENT_REMOVE));
        // Before its handshake, and another protocol.
        assert_eq!(parse_fdinfo("API:\taa:0:1ff\n"), None);
        assert_eq!(parse_fdinfo("API:\tab:80000008:1ff\n"), None);
        assert_eq!(parse_fdinfo("pos:\t0\n"), None);
    }

    #[test]
    fn another_descriptor_is_not_adopted() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert!(matches!(Userfault::adopt(file.into()), Err(AdoptError::NotUserfault(_))));
    }
}
