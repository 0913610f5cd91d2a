//! The commands of bpf(2) that the tap needs, as in `linux/bpf.h`: each has a number and a structure, whose missing end the
//! kernel reads as zeros.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::program::Insn;
use host::tracefs::last_errno;

const MAP_CREATE: i32 = 0;
const PROG_LOAD: i32 = 5;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const RAW_TRACEPOINT_OPEN: i32 = 17;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_RINGBUF: u32 = 27;
const MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

/// No helper that the program calls requires the GPL.
const LICENSE: &CStr = c"MIT OR Apache-2.0";

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
struct RawTracepointOpen {
    name: u64,
    prog_fd: u32,
    pad: u32,
}

#[repr(C)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info`, up to `recursion_misses`.
type ProgInfo = [u64; 27];
/// `recursion_misses`.
const MISSES: usize = 26;

/// # Safety
/// `attributes` is the structure of `command`, and its addresses are valid during the call.
unsafe fn bpf<T>(command: i32, mut attributes: T) -> Result<i32, Errno> {
    // The kernel may write to the structure: the length of the information that it returns.
    let at = std::ptr::from_mut(&mut attributes);
    // SAFETY: the structure is owned and has the given length; its addresses are valid, as the caller ensures.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, at, size_of::<T>()) };
    if done < 0 { Err(last_errno()) } else { Ok(done as i32) }
}

/// # Safety
/// As [`bpf`], and `command` returns a descriptor.
unsafe fn descriptor<T>(command: i32, attributes: T) -> Result<OwnedFd, Errno> {
    // SAFETY: as the caller ensures.
    let raw = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel has just returned this descriptor, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Creates a map. Before Linux 5.11 maps count as locked memory, also for root: at the limit it is raised, if permitted.
fn create(wanted: MapCreate) -> Result<OwnedFd, Errno> {
    // SAFETY: the structure has no address.
    let made = unsafe { descriptor(MAP_CREATE, wanted) };
    let Err(Errno::PERM) = made else { return made };
    let unlimited = Rlimit { current: None, maximum: None };
    if rustix::process::setrlimit(Resource::Memlock, unlimited).is_err() {
        return made;
    }
    // SAFETY: as above.
    unsafe { descriptor(MAP_CREATE, wanted) }
}

/// An array of `entries` values of `size` bytes each, which can be mapped.
pub(super) fn mappable_array(entries: u32, size: u32) -> Result<OwnedFd, Errno> {
    create(MapCreate {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: size,
        max_entries: entries,
        map_flags: MMAPABLE,
    })
}

/// A BPF ring of `size` bytes.
pub(super) fn ring(size: u32) -> Result<OwnedFd, Errno> {
    create(MapCreate { map_type: MAP_TYPE_RINGBUF, max_entries: size, ..MapCreate::default() })
}

/// Has the kernel verify and compile a program for raw tracepoints.
pub(super) fn load(program: &[Insn]) -> Result<OwnedFd, Errno> {
    let mut prog_name = [0; 16];
    prog_name[..8].copy_from_slice(b"zapscope");
    let wanted = ProgLoad {
        prog_type: PROG_TYPE_RAW_TRACEPOINT,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        prog_name,
        ..ProgLoad::default()
    };
    // SAFETY: instructions and licence are only read, and outlive the call.
    unsafe { descriptor(PROG_LOAD, wanted) }
}

/// Attaches `program` to the tracepoint, until the returned descriptor is closed.
pub(super) fn attach(program: BorrowedFd<'_>, tracepoint: &CStr) -> Result<OwnedFd, Errno> {
    let wanted =
        RawTracepointOpen { name: tracepoint.as_ptr() as u64, prog_fd: program.as_raw_fd() as u32, pad: 0 };
    // SAFETY: the name ends with a NUL, is only read, and outlives the call.
    unsafe { descriptor(RAW_TRACEPOINT_OPEN, wanted) }
}

/// How often the program did not run because it was running on that CPU already; 0 before Linux 5.12, which does not count.
pub(super) fn misses(program: &OwnedFd) -> u64 {
    let mut info: ProgInfo = [0; MISSES + 1];
    let wanted = GetInfo {
        bpf_fd: program.as_fd().as_raw_fd() as u32,
        info_len: size_of::<ProgInfo>() as u32,
        info: info.as_mut_ptr() as u64,
    };
    // SAFETY: the buffer is owned and has the given length.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, wanted) }.map_or(0, |_| info[MISSES])
}
