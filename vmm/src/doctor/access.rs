//! Who we are, as far as permissions go.

use crate::host::Root;

/// Capabilities by bit, from `<linux/capability.h>`.
pub(super) const CAP_SYS_PTRACE: u32 = 19;
pub(super) const CAP_SYS_ADMIN: u32 = 21;
pub(super) const CAP_SYS_NICE: u32 = 23;
pub(super) const CAP_PERFMON: u32 = 38;

/// The effective capabilities of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities(u64);

impl Capabilities {
    pub(super) fn read() -> Self {
        Root::default().text("/proc/self/status").as_deref().and_then(Self::parse).unwrap_or_default()
    }

    pub(super) fn parse(status: &str) -> Option<Self> {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok().map(Self)
    }

    pub(super) fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }
}

/// Whether the file may be written, without opening it.
pub(super) fn may_write(path: &str) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Whether the file may be read, without opening it: to read some is to act.
pub(super) fn may_read(path: &str) -> bool {
    rustix::fs::access(path, rustix::fs::Access::READ_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_counts() {
        let root = Capabilities::parse("Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n").unwrap();
        assert!(root.has(CAP_SYS_ADMIN) && root.has(CAP_PERFMON));
        let user = Capabilities::parse("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n").unwrap();
        assert!(!user.has(CAP_SYS_ADMIN));
        assert_eq!(Capabilities::parse("CapEff: none\n"), None);
    }
}
