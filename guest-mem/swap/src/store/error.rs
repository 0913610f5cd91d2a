//! The error of a store.

use guest_mem::PAGE_SIZE;
use rustix::io::Errno;

use super::Usage;
use super::slot::Slot;

/// An error of a store. If it concerns one page, `index` is that page's place in the batch.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum StoreError {
    #[error("{slots} slots for {pages} pages: a batch has one slot for each page")]
    Shape { pages: usize, slots: usize },
    #[error("the {store} store is full: {}. Give it a larger limit, or evict fewer pages", full(*.limit, .usage))]
    Full { store: &'static str, limit: u64, usage: Usage },
    #[error(
        "the {store} store cannot have {bytes} bytes of memory: raise `ulimit -v`, or free some on the host"
    )]
    Memory { store: &'static str, bytes: u64, source: Errno },
    #[error("page {index} of the batch: the {store} store keeps nothing at {slot}")]
    NoSuchPage { store: &'static str, index: usize, slot: Slot },
    #[error("page {index} of the batch: what the {store} store keeps at {slot} no longer unpacks to a page")]
    Damaged { store: &'static str, index: usize, slot: Slot },
    #[error("{attempt} byte {offset} of the {store} store, for page {index} of the batch")]
    Io { store: &'static str, attempt: &'static str, index: usize, offset: u64, source: Errno },
    #[error(
        "{attempt} byte {offset} of the {store} store, for page {index} of the batch: {done} of {wanted} bytes, \
         and then no more. Is its file system full, or its file cut short?"
    )]
    Short {
        store: &'static str,
        attempt: &'static str,
        index: usize,
        offset: u64,
        wanted: usize,
        done: usize,
    },
    #[error("the {store} store takes no pages: it is what was stored before")]
    ReadOnly { store: &'static str },
}

/// `it may hold 64 MiB, and 15,360 pages (60 MiB) take 64 MiB there: they do not compress`.
fn full(limit: u64, usage: &Usage) -> String {
    let content = usage.pages.saturating_mul(PAGE_SIZE);
    let mut text = format!(
        "it may hold {}, and {} pages ({}) take {} there",
        sized(limit),
        usage.pages,
        sized(content),
        sized(usage.held_bytes)
    );
    if usage.pages > 0 && usage.stored_bytes >= content {
        text += ": they are stored as they are, for they do not compress";
    }
    text
}

/// A size in the largest unit of which it is a whole number, up to MiB; to one decimal where that is none.
fn sized(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes {
        _ if bytes >= MIB && bytes.is_multiple_of(MIB) => format!("{} MiB", bytes / MIB),
        _ if bytes >= MIB => format!("{:.1} MiB", bytes as f64 / MIB as f64),
        _ if bytes >= 1024 && bytes.is_multiple_of(1024) => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_store_says_what_is_in_it_and_whether_that_compressed() {
        let full = |pages, stored_bytes, held_bytes| {
            let usage = Usage { pages, stored_bytes, held_bytes };
            StoreError::Full { store: "lz4", limit: 64 << 20, usage }.to_string()
        };
        assert_eq!(
            full(15_360, 15_360 << 12, 64 << 20),
            "the lz4 store is full: it may hold 64 MiB, and 15360 pages (60 MiB) take 64 MiB there: they are stored as \
             they are, for they do not compress. Give it a larger limit, or evict fewer pages"
        );
        assert!(!full(20_000, 10_000 << 12, (64 << 20) - 1000).contains("compress"));
        assert!(full(0, 0, 0).contains("0 pages (0 bytes) take 0 bytes"));
    }
}
