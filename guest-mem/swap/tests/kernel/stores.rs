//! The file store on file systems that are full, and past the process's own limit: what the kernel says there is an
//! error that names the page, and nothing is kept or lost by it.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_mem::{PAGE_SIZE, Page};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use swap::{FileIo, FileStore, Slot, Store, StoreError, Usage};

test_memory::tests! {
    a_full_file_system_is_an_error_that_names_the_page: [OwnMounts],
    the_process_s_file_size_limit_is_an_error_that_names_the_page: [],
    a_named_directory_s_file_leaves_no_name: [],
}

/// The limit of one test is the other's as well.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn batch(count: u64, generation: u64) -> Vec<Page> {
    let mut pages = vec![Page::ZERO; count as usize];
    for (number, page) in pages.iter_mut().enumerate() {
        for (at, word) in page.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&(generation << 32 | (number as u64) << 16 | at as u64).to_le_bytes());
        }
    }
    pages
}

fn put(store: &FileStore, pages: &[Page]) -> Result<Vec<Slot>, StoreError> {
    let mut slots = vec![Slot::default(); pages.len()];
    store.put(pages, &mut slots).map(|()| slots)
}

fn assert_kept(store: &FileStore, slots: &[Slot], pages: &[Page]) {
    let mut back = vec![Page::ZERO; pages.len()];
    store.get(slots, &mut back).unwrap();
    assert!(back == pages);
}

/// What is kept stays right when a put fails; what is freed can be used again.
fn survives_a_failed_put(store: &FileStore, room: u64) -> StoreError {
    let first = batch(room / 2, 1);
    let slots = put(store, &first).unwrap();
    let before = store.usage();
    let error = put(store, &batch(room, 2)).unwrap_err();
    let after = store.usage();
    assert_eq!((after.pages, after.stored_bytes), (before.pages, before.stored_bytes));
    assert_kept(store, &slots, &first);
    let second = batch(room / 4, 3);
    let more = put(store, &second).unwrap();
    assert_kept(store, &more, &second);
    assert_kept(store, &slots, &first);
    store.free(&slots);
    store.free(&more);
    assert_eq!(store.usage(), Usage::default());
    error
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A store of 256 pages on a tmpfs of 64, which this thread alone sees, and which is gone from its sight as well when
/// this returns; the store's file keeps it.
fn store_on_a_small_tmpfs(directory: &Path) -> io::Result<FileStore> {
    let at = CString::new(directory.as_os_str().as_bytes()).unwrap();
    // SAFETY: no memory is passed; no other thread shares the view that this one changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) })?;
    let private = libc::MS_PRIVATE | libc::MS_REC;
    // SAFETY: the strings are NUL-terminated, and null is what changing propagation takes for the rest.
    check(unsafe { libc::mount(null(), c"/".as_ptr(), null(), private, null()) })?;
    // SAFETY: the strings are NUL-terminated.
    check(unsafe {
        libc::mount(c"full".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=256k".as_ptr().cast())
    })?;
    let store = FileStore::new(directory, 256 * PAGE_SIZE);
    // SAFETY: the string is NUL-terminated.
    check(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) })?;
    Ok(store.unwrap())
}

fn a_full_file_system_is_an_error_that_names_the_page() {
    let _turn = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().to_owned();
    let store = std::thread::spawn(move || store_on_a_small_tmpfs(&at)).join().unwrap().unwrap();
    assert_eq!(store.io(), FileIo::Buffered, "a tmpfs is memory, whatever flags it takes");
    let error = survives_a_failed_put(&store, 64);
    match error {
        StoreError::Io { source: Errno::NOSPC, index, .. } | StoreError::Short { index, .. } => {
            assert!(index <= 32, "page {index}")
        }
        other => panic!("{other}"),
    }
}

fn the_process_s_file_size_limit_is_an_error_that_names_the_page() {
    let _turn = one_at_a_time();
    let store = FileStore::new(&std::env::temp_dir(), 256 * PAGE_SIZE).unwrap();
    // SAFETY: SIG_IGN is no handler; the kernel then says EFBIG where it would have killed the process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let before = getrlimit(Resource::Fsize);
    // A limit within page 64, so that a write is cut short within a page where the file is buffered.
    let limit = 64 * PAGE_SIZE + if store.io() == FileIo::Buffered { 1000 } else { 0 };
    setrlimit(Resource::Fsize, Rlimit { current: Some(limit), maximum: before.maximum }).unwrap();
    let error = std::panic::catch_unwind(|| survives_a_failed_put(&store, 64));
    setrlimit(Resource::Fsize, before).unwrap();
    match error.unwrap() {
        // Pages 32..96 of the file, of which 32..64 fit.
        StoreError::Io { source: Errno::FBIG, index: 32, offset, .. }
        | StoreError::Short { index: 32, offset, .. } => {
            assert_eq!(offset, 64 * PAGE_SIZE);
        }
        other => panic!("{other}"),
    }
}

fn a_named_directory_s_file_leaves_no_name() {
    let _turn = one_at_a_time();
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::new(directory.path(), 1 << 20).unwrap();
    let pages = batch(3, 1);
    let slots = put(&store, &pages).unwrap();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    assert_kept(&store, &slots, &pages);
}
