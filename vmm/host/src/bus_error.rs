//! The last words of a process that touches memory which the kernel cannot give.
//!
//! Where a page of guest memory may be refused it is asked for by a system call before it is touched
//! ([`guest_mem::Region::reach`]), and the refusal is an error. What is left, and cannot be asked for: memory that failed,
//! swap that cannot be read back, a page that goes between the question and the touch. It ends the process, as without
//! this; but not without a word.

use std::io;

use libc::{c_int, c_void, siginfo_t};

const BEGINNING: &[u8] = b"zapscope: the kernel cannot give the page at ";
const END: &[u8] =
    b", which this process has mapped (SIGBUS): memory that failed, swap that cannot be read back, or a \
pool or cgroup of huge pages that was emptied meanwhile; the kernel's log (dmesg) may say which\n";

/// Has the process say why it dies of SIGBUS. The rest is as before: the signal ends it.
///
/// # Errors
/// The handler cannot be installed.
pub fn say_why() -> io::Result<()> {
    // SAFETY: all zeros is a value of the structure: no handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = last_words;
    action.sa_sigaction = handler as usize;
    // Once: what comes after it is the default, which ends the process.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: the handler makes two system calls and touches nothing but its stack; the old action is not asked for.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn last_words(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands the handler a structure that lives as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS the kernel fills in the address.
    let address = unsafe { info.si_addr() } as usize;
    let mut text = [0; BEGINNING.len() + 2 + 16 + END.len()];
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        text[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    put(BEGINNING);
    put(b"0x");
    for digit in (0..16).rev() {
        put(&[b"0123456789abcdef"[address >> (4 * digit) & 0xf]]);
    }
    put(END);
    // SAFETY: the bytes are on this stack. Not through the output's thread: this one may be holding what that waits for.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // For a signal that somebody sent, or that a broken page raised elsewhere: there is no instruction to repeat.
    // SAFETY: the call takes an integer; the signal is pending until the handler returns, and then ends the process.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const NAME: &str = "bus_error::tests::a_page_that_is_not_there_is_named_at_the_end";

    /// The test starts itself again, to be what dies.
    #[test]
    fn a_page_that_is_not_there_is_named_at_the_end() {
        if std::env::var_os("ZAPSCOPE_TEST_SIGBUS").is_some() {
            say_why().unwrap();
            // A file that is shorter than its mapping.
            let file = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let (read, shared) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
            // SAFETY: a new mapping, of which nobody knows.
            let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, read, shared, &file, 0) }.unwrap();
            // SAFETY: what is mapped there cannot be read, which is what the test is about.
            unsafe { at.cast::<u8>().read_volatile() };
            unreachable!("there is nothing to read");
        }
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args([NAME, "--exact", "--nocapture"]).env("ZAPSCOPE_TEST_SIGBUS", "1");
        let output = again.output().unwrap();
        assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("zapscope: the kernel cannot give the page at 0x0000"), "{said}");
        assert!(said.contains("SIGBUS"), "{said}");
    }
}
