//! A host that lacks something, for one process: another file in a file's place, or a system call that the kernel refuses.
//! Nothing of the host changes.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Has the process find the file `source` where `target` is.
pub fn bound<'c>(command: &'c mut Command, source: &str, target: &str) -> &'c mut Command {
    let [source, target] = [source, target].map(|path| CString::new(path).expect("a path has no NUL"));
    // SAFETY: between fork and exec only system calls are made, on strings made before.
    unsafe { command.pre_exec(move || bind(&source, &target)) }
}

/// Whether [`bound`] works here: for root, or where this user may have a user namespace.
pub fn may_bind(target: &str) -> bool {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null()).stderr(Stdio::null());
    bound(&mut command, "/dev/null", target).status().is_ok_and(|status| status.success())
}

/// In a mount namespace of this process's own, which a user other than root gets with a user namespace. Makes system
/// calls and nothing else, so that it may stand between fork and exec.
pub(crate) fn bind(source: &CStr, target: &CStr) -> io::Result<()> {
    let nothing = std::ptr::null();
    let user = if rustix::process::geteuid().is_root() { 0 } else { libc::CLONE_NEWUSER };
    // SAFETY: takes flags.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNS | user) })?;
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: the string is a constant; what is null is not looked at for these flags.
    checked(unsafe { libc::mount(nothing, c"/".as_ptr(), nothing, flags, nothing.cast()) })?;
    // SAFETY: both strings live across the call; what is null is not looked at for this flag.
    checked(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), nothing, libc::MS_BIND, nothing.cast()) })
}

/// Has the process and all it starts live under this limit: `ulimit`.
pub fn limited(command: &mut Command, resource: Resource, most: u64) -> &mut Command {
    let limit = Rlimit { current: Some(most), maximum: getrlimit(resource).maximum };
    // SAFETY: between fork and exec, the closure makes one system call and touches nothing else.
    unsafe { command.pre_exec(move || Ok(setrlimit(resource, limit)?)) }
}

/// A system call that is refused.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// Its number, `libc::SYS_…`.
    pub call: libc::c_long,
    /// Only if its second argument is this: an ioctl's request.
    pub request: Option<u32>,
    /// What the kernel answers.
    pub errno: Errno,
}

/// Has the kernel refuse a system call to the process and all it starts, by a seccomp filter.
pub fn refused(command: &mut Command, refusal: Refusal) -> &mut Command {
    let filter = filter(refusal);
    // SAFETY: between fork and exec only system calls are made, on memory that was allocated before.
    unsafe { command.pre_exec(move || install(&filter)) }
}

/// Where in `struct seccomp_data` the number and the low half of the second argument are.
const NUMBER: u32 = 0;
const SECOND: u32 = 24;

fn filter(refusal: Refusal) -> Vec<libc::sock_filter> {
    let load = |at| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    // The jump says how many instructions are left out where the value is another one.
    let equals = |value, skip| op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, skip);
    let end = |action| op(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    let errno = refusal.errno.raw_os_error() as u32 & libc::SECCOMP_RET_DATA;
    let (refuse, allow) = (end(libc::SECCOMP_RET_ERRNO | errno), end(libc::SECCOMP_RET_ALLOW));
    let number = refusal.call as u32;
    match refusal.request {
        None => vec![load(NUMBER), equals(number, 1), refuse, allow],
        Some(request) => {
            vec![load(NUMBER), equals(number, 3), load(SECOND), equals(request, 1), refuse, allow]
        }
    }
}

fn op(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: takes numbers.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the program and its instructions live across the call, which only reads them.
    checked(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
}

fn checked(done: libc::c_int) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
