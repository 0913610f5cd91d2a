//! The ways back into shared memory: what has come from a store is in a buffer, and has to get into the memfd.
//!
//! | way | what each window takes |
//! | --- | --- |
//! | copy | `UFFDIO_COPY` |
//! | write | pwrite(2) to the file, `UFFDIO_CONTINUE` |
//! | mapped | `MADV_POPULATE_WRITE` of a second mapping, a copy to it, `UFFDIO_CONTINUE` |
//!
//! To unpack straight into the second mapping would save the last way its copy, and nothing else.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use guest_mem::{Backing, PAGE_SIZE};
use machine::VmCore;

use super::guest::{ARENA, Guest, Order};
use super::handlers::{Plain, fill, go_on};
use super::rounds::Rounds;
use super::{SHORT_ROUNDS, len};

/// A second mapping of the arena's file, as long as the process lives.
#[derive(Clone, Copy)]
struct Second(usize);

impl Second {
    fn map(guest: &Guest) -> Self {
        let memfd = guest.arena().memfd().expect("it is shared").as_raw_fd();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel likes.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), ARENA as usize, access, libc::MAP_SHARED, memfd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(at as usize)
    }

    fn put(self, offset: u64, content: &[u8]) {
        let at = (self.0 + offset as usize) as *mut u8;
        // SAFETY: within the mapping; it makes pages, and keeps what is there.
        let done = unsafe { libc::madvise(at.cast(), content.len(), libc::MADV_POPULATE_WRITE) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: within the mapping, to which no reference exists; the guest waits for these pages.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), at, content.len()) };
    }
}

type Way = fn(&Core, BorrowedFd<'_>, u64, &[u8]);

#[derive(Clone)]
struct Core(Arc<VmCore>, Second);

impl Core {
    fn offset(&self, dst: u64) -> u64 {
        dst - self.0.arena().range().start().get()
    }
}

const WAYS: [Way; 3] = [
    |_, userfault, dst, content| fill(userfault, dst, content),
    |core, userfault, dst, content| {
        let memfd = core.0.arena().memfd().expect("it is shared");
        let written = rustix::io::pwrite(memfd, content, core.offset(dst)).expect("memory takes it");
        assert_eq!(written, content.len());
        go_on(userfault, dst, content.len() as u64);
    },
    |core, userfault, dst, content| {
        core.1.put(core.offset(dst), content);
        go_on(userfault, dst, content.len() as u64);
    },
];

/// All windows.
pub fn shared() {
    println!("Ways back into shared memory, us a page; ratios: medians of paired rounds (middle half)");
    println!(
        "{:>9} {:>6} | {:>7} {:>7} {:>7} | {:>19} {:>19}",
        "", "window", "copy", "write", "mapped", "write/copy", "mapped/copy"
    );
    for backing in [Backing::Memfd, Backing::MemfdThp] {
        let guest = Guest::start(1, backing);
        let core = Core(guest.core().clone(), Second::map(&guest));
        for pages in [1, 16, 64, 512] {
            let (len, window) = (len(pages), u64::from(pages) * PAGE_SIZE);
            let rounds = Rounds::<3>::run(SHORT_ROUNDS, len / PAGE_SIZE, |who| {
                guest.empty();
                let core = core.clone();
                let handlers = Plain::reading(&guest, window, move || {
                    let (core, content) = (core.clone(), vec![0xa5; window as usize]);
                    move |userfault: BorrowedFd<'_>, dst| WAYS[who](&core, userfault, dst, &content)
                });
                let took = guest.touch(len, Order::Sequential);
                assert_eq!(handlers.stop(), len / window, "each window is one fault");
                took
            });
            let [write, mapped] = [1, 2].map(|who| rounds.compared(who, 0));
            println!(
                "{:>9} {pages:>6} | {:>7.2} {:>7.2} {:>7.2} | {write:>19} {mapped:>19}",
                backing.to_string(),
                rounds.of(0),
                rounds.of(1),
                rounds.of(2),
            );
        }
    }
    println!();
}
