//! A snapshot of which everything but the pages was read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use guest_mem::PAGE_SIZE;
use swap::ImageStore;

use super::header::{HEADER_BYTES, Header, HeaderError};
use super::index::{Entry, Index};
use super::{BadContent, SnapshotError};
use crate::arch::state::VcpuState;
use crate::arch::state_bytes;
use program::input::{FileKind, Input};

/// A snapshot file, opened and checked.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    /// Its header.
    pub header: Header,
    /// The vCPUs' states.
    pub vcpus: Vec<VcpuState>,
    index: Index,
    file: File,
}

impl Snapshot {
    /// Opens a snapshot and reads its header, states and index. The pages are neither read nor known to be sound.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        let failed = |attempt| move |source| SnapshotError::Io { attempt, path: path.to_owned(), source };
        let bad = |why| SnapshotError::Bad { path: path.to_owned(), why };
        let input = Input::open(FileKind::Snapshot, path)?;
        let len = input.len();
        let file = input.into_file();
        if len < PAGE_SIZE {
            return Err(bad(short(&file, len).into()));
        }
        let mut page = [0; HEADER_BYTES];
        file.read_exact_at(&mut page, 0).map_err(failed("reading"))?;
        let header = Header::decode(&page, len).map_err(|why| bad(why.into()))?;
        // The header's layout is as long as the file, so neither part takes more memory than the file has bytes.
        let part = |range: std::ops::Range<u64>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            file.read_exact_at(&mut bytes, range.start).map_err(failed("reading")).map(|()| bytes)
        };
        let layout = header.layout();
        let states = part(layout.state)?;
        let (expected, found) = (header.state.1, crc32fast::hash(&states));
        if expected != found {
            return Err(bad(BadContent::States { expected, found }));
        }
        let vcpus = state_bytes::decode(&states, header.vcpus).map_err(|why| bad(why.into()))?;
        let index = part(layout.index)?;
        let index = Index::decode(&index, header.index_crc, header.pages(), header.stored)
            .map_err(|why| bad(why.into()))?;
        Ok(Self { path: path.to_owned(), header, vcpus, index, file })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its pages as a store.
    pub fn store(&self) -> Result<ImageStore, SnapshotError> {
        let failed = |source| SnapshotError::Io { attempt: "opening", path: self.path.clone(), source };
        let data = self.header.layout().data;
        let file = self.file.try_clone().map_err(failed)?;
        Ok(ImageStore::new(file.into(), data.start / PAGE_SIZE..data.end / PAGE_SIZE))
    }

    /// Every page of memory, low memory's first.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.index.entries()
    }

    /// The number in the file of the stored page of this rank.
    pub fn file_page(&self, rank: u64) -> u64 {
        self.header.layout().data.start / PAGE_SIZE + rank
    }
}

/// The error of a file that is shorter than a header: it is no snapshot, or one of another version, or was cut short.
fn short(file: &File, len: u64) -> HeaderError {
    let mut page = [0; HEADER_BYTES];
    // Bytes that cannot be read stay zero, and no snapshot begins with zeros.
    let _ = file.read_at(&mut page, 0);
    match Header::decode(&page, len) {
        Err(why @ (HeaderError::Magic | HeaderError::Version(_))) => why,
        _ => HeaderError::Length { expected: PAGE_SIZE, found: len },
    }
}
