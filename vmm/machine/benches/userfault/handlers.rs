//! Who fills the guest's memory.
//!
//! | handler | threads | what each does |
//! | --- | --- | --- |
//! | bare | one a vCPU, on its processor | read(2), which sleeps; `UFFDIO_COPY` of the window |
//! | ours | one a vCPU, on its processor | [`swap::Handlers`], on memory that was never touched |
//! | usual | one, anywhere | poll(2), read(2) of one message, `UFFDIO_COPY` of the window |
//! | usual here | the same, on the first vCPU's processor | what the usual one is when the scheduler puts it there |
//!
//! "bare" is the least there can be: no fates, no store, no events, no errors but panics; its window is an aligned power
//! of two that no other thread fills.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use guest_mem::{Backing, HvaRange, PAGE_SIZE, PMD_SIZE, Region};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::thread::sched_setaffinity;
use swap::{Codec, CompressedStore, FaultAround, Handlers, Lost, Observer, Options, Served, Store, Swapper};
use uffd::{Event, Features, Modes, PageFault, Userfault};

use super::guest::{Guest, only};

/// `UFFDIO_COPY` and its structure, as the kernel's header has them.
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    done: i64,
}
/// `UFFDIO_CONTINUE` and its structure.
const UFFDIO_CONTINUE: libc::c_ulong = 0xc020_aa07;
#[repr(C)]
struct Continue {
    start: u64,
    len: u64,
    mode: u64,
    mapped: i64,
}
/// `struct uffd_msg` of a fault: the third word is the address.
type Message = [u64; 4];

/// Fills what is missing with a copy.
pub fn fill(userfault: BorrowedFd<'_>, dst: u64, content: &[u8]) {
    let mut copy = Copy { dst, src: content.as_ptr() as u64, len: content.len() as u64, mode: 0, done: 0 };
    // SAFETY: the structure is the request's own; the kernel fills only what is registered, into which there are no
    // references.
    let done = unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_COPY, &raw mut copy) };
    assert_eq!(done, 0, "UFFDIO_COPY at {dst:#x}: {}", std::io::Error::last_os_error());
}

/// Maps what is in the page cache.
pub fn go_on(userfault: BorrowedFd<'_>, start: u64, len: u64) {
    let mut argument = Continue { start, len, mode: 0, mapped: 0 };
    // SAFETY: the structure is the request's own; the kernel maps only what is registered.
    let done = unsafe { libc::ioctl(userfault.as_raw_fd(), UFFDIO_CONTINUE, &raw mut argument) };
    assert_eq!(done, 0, "UFFDIO_CONTINUE at {start:#x}: {}", std::io::Error::last_os_error());
}

fn read_one(userfault: BorrowedFd<'_>) -> Option<u64> {
    let mut message = Message::default();
    let len = size_of::<Message>();
    // SAFETY: the message is as long, and any bytes are words.
    let read = unsafe { libc::read(userfault.as_raw_fd(), message.as_mut_ptr().cast(), len) };
    (read == len as isize).then_some(message[2])
}

/// Threads of plain system calls.
pub struct Plain {
    userfault: Arc<Userfault>,
    /// A touch of a page of this ends one thread: its fault is the message that says so.
    end: Arc<Region>,
    arena: HvaRange,
    threads: Vec<JoinHandle<u64>>,
}

impl Plain {
    fn open(guest: &Guest) -> Self {
        let userfault = Userfault::open(Features::empty()).expect("a userfaultfd");
        let end = Region::map(PMD_SIZE, Backing::Base4k).expect("2 MiB");
        let modes = Modes { missing: true, ..Modes::default() };
        let shared = guest.arena().backing().is_shared();
        let arena = guest.arena().range();
        let of_arena = Modes { minor: shared, ..modes };
        userfault.register(guest.arena(), arena, of_arena).expect("nobody else has it");
        userfault.register(&end, end.range(), modes).expect("it is new");
        Self { userfault: Arc::new(userfault), end: Arc::new(end), arena, threads: Vec::new() }
    }

    /// One thread for each vCPU, on its processor, asleep in read(2).
    pub fn bare(guest: &Guest, window: u64) -> Self {
        Self::reading(guest, window, move || with_zeros(window))
    }

    /// The same with another way to put a window in.
    pub fn reading<P: FnMut(BorrowedFd<'_>, u64) + 'static>(
        guest: &Guest,
        window: u64,
        put: impl Fn() -> P + Clone + Send + 'static,
    ) -> Self {
        let mut plain = Self::open(guest);
        fcntl_setfl(plain.userfault.as_fd(), OFlags::empty()).expect("a flag that any file has");
        for &processor in &guest.processors {
            let settle = move || sched_setaffinity(None, &only(processor)).expect("ours");
            plain.spawn(window, settle, |_| (), put.clone());
        }
        plain
    }

    /// One thread, anywhere, that polls.
    pub fn usual(guest: &Guest, window: u64) -> Self {
        let mut plain = Self::open(guest);
        plain.spawn(window, || (), polled, move || with_zeros(window));
        plain
    }

    /// One thread, on the first vCPU's processor, that polls.
    pub fn usual_here(guest: &Guest, window: u64) -> Self {
        let (mut plain, processor) = (Self::open(guest), guest.processors[0]);
        let settle = move || sched_setaffinity(None, &only(processor)).expect("ours");
        plain.spawn(window, settle, polled, move || with_zeros(window));
        plain
    }

    fn spawn<P: FnMut(BorrowedFd<'_>, u64)>(
        &mut self,
        window: u64,
        settle: impl FnOnce() + Send + 'static,
        wait: impl Fn(BorrowedFd<'_>) + Send + 'static,
        put: impl FnOnce() -> P + Send + 'static,
    ) {
        let (userfault, end) = (self.userfault.clone(), self.end.range());
        let thread = std::thread::spawn(move || {
            settle();
            let mut put = put();
            let mut faults = 0;
            loop {
                wait(userfault.as_fd());
                let Some(address) = read_one(userfault.as_fd()) else { continue };
                if (end.start().get()..end.end().get()).contains(&address) {
                    fill(userfault.as_fd(), address & !(PAGE_SIZE - 1), &[0; PAGE_SIZE as usize]);
                    return faults;
                }
                put(userfault.as_fd(), address & !(window - 1));
                faults += 1;
            }
        });
        self.threads.push(thread);
    }

    /// Ends the threads. Returns how many faults they served.
    pub fn stop(mut self) -> u64 {
        for (page, _) in self.end.range().pages().zip(&self.threads) {
            self.end.write_u64(page.start(), 1).expect("a page of it");
        }
        let faults = self.threads.drain(..).map(|thread| thread.join().expect("it has not panicked")).sum();
        self.userfault.unregister(self.arena).expect("it was registered");
        faults
    }
}

fn polled(userfault: BorrowedFd<'_>) {
    poll(&mut [PollFd::from_borrowed_fd(userfault, PollFlags::IN)], None).expect("it polls");
}

/// A window of zeros.
fn with_zeros(window: u64) -> impl FnMut(BorrowedFd<'_>, u64) {
    let zeros = vec![0u8; window as usize];
    // Zeros that were never written are not there, and the kernel copies slowly what is not.
    std::hint::black_box(&zeros[..]).chunks(PAGE_SIZE as usize).for_each(|page| {
        std::hint::black_box(page[0]);
    });
    move |userfault, dst| fill(userfault, dst, &zeros)
}

/// Observer nothing but that a page is lost.
pub struct Deaf;

impl Observer for Deaf {
    fn fault(&mut self, _fault: &PageFault, _served: Served) {}
    fn event(&mut self, _event: &Event) {}
    fn lost(&mut self, lost: Lost) {
        panic!("{lost}: {}", lost.why);
    }
}

/// A store in memory with LZ4.
pub fn lz4() -> Arc<dyn Store> {
    Arc::new(CompressedStore::new(Codec::Lz4, 1 << 30).expect("address space"))
}

/// The swapper and its handlers.
pub struct Ours {
    /// What evicts.
    pub swapper: Arc<Swapper>,
    handlers: Handlers,
}

impl Ours {
    /// One handler for each vCPU, on its processor.
    pub fn start(guest: &Guest, around: FaultAround, store: Arc<dyn Store>) -> Self {
        let options = Options { store, around, events: false };
        let swapper = Arc::new(Swapper::attach(guest.core().arena().clone(), options).expect("it attaches"));
        let hears = guest.processors.iter().map(|&processor| (Deaf, Some(processor))).collect();
        let handlers = Handlers::start(&swapper, hears).expect("they start");
        Self { swapper, handlers }
    }

    /// Stops them. Returns how many faults they served, and how many pages they put in.
    pub fn stop(self) -> (u64, u64) {
        let reports = self.handlers.stop().expect("they have not given up");
        let sum = |of: fn(&swap::HandlerReport) -> u64| reports.iter().map(of).sum();
        (sum(|report| report.faults), sum(|report| report.zeroed + report.returned))
    }
}
