//! What may be done to files, found without opening them.

/// Whether the file may be written, without opening it.
pub(super) fn may_write(path: &str) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Whether the file may be read, without opening it: to read some is to act.
pub(super) fn may_read(path: &str) -> bool {
    rustix::fs::access(path, rustix::fs::Access::READ_OK).is_ok()
}
