//! The message of a process that is ended by SIGBUS.
//!
//! Where the kernel may refuse a page of guest memory, a system call asks for it before it is touched
//! ([`guest_mem::Region::reach`]), and the refusal is an error. SIGBUS remains for memory that failed, for swap that cannot be
//! read, and for a page that is taken between the system call and the touch. It ends the process, with this message.

use std::io;

use libc::{c_int, c_void, siginfo_t};

const BEGINNING: &[u8] = b"zapscope: the kernel cannot give the page at ";
const END: &[u8] =
    b", which this process has mapped (SIGBUS): memory that failed, swap that cannot be read back, or a \
pool or cgroup of huge pages that was emptied meanwhile; the kernel's log (dmesg) may say which\n";

/// Installs a handler that prints a message at SIGBUS. The signal ends the process as without it.
///
/// # Errors
/// The handler cannot be installed.
pub fn say_why() -> io::Result<()> {
    // SAFETY: all zeros is a value of the structure: no handler, no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = print_and_raise;
    action.sa_sigaction = handler as usize;
    // Once: afterwards the default action ends the process.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND | libc::SA_ONSTACK;
    // SAFETY: the handler makes two system calls and accesses its stack alone; the old action is not asked for.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn print_and_raise(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
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
    // SAFETY: the bytes are on this stack. Not by the output's thread, which may wait for a lock of this thread.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    // A signal that another process sent has no instruction that raises it again.
    // SAFETY: the call takes an integer; the signal is pending until the handler returns, and then ends the process.
    unsafe { libc::raise(signal) };
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const NAME: &str = "bus_error::tests::the_message_names_the_missing_page";

    /// The test starts itself again as the process that is ended.
    #[test]
    fn the_message_names_the_missing_page() {
        if std::env::var_os("ZAPSCOPE_TEST_SIGBUS").is_some() {
            say_why().unwrap();
            // A file that is shorter than its mapping.
            let file = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            let (read, shared) = (rustix::mm::ProtFlags::READ, rustix::mm::MapFlags::SHARED);
            // SAFETY: a new mapping.
            let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, read, shared, &file, 0) }.unwrap();
            // SAFETY: mapped; the read raises SIGBUS, which ends the process.
            unsafe { at.cast::<u8>().read_volatile() };
            unreachable!("the page does not exist");
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
