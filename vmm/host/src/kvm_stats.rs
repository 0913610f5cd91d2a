//! KVM's binary statistics, by which SPTEs and TLB flushes are counted.
//!
//! ```text
//! KVM_GET_STATS_FD ─► header │ id │ descriptors (name, kind, offset) │ data (u64 each, live)
//!                     read once, at open ─────────────────────────────┘   └─ read() / read_many(): one pread
//! ```
//!
//! The statistics, their order and their offsets differ between kernels and architectures: each is looked up by name.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{KVMIO, kvm_stats_desc, kvm_stats_header};
use rustix::io::Errno;

/// `_IO(KVMIO, 0xce)` of `<linux/kvm.h>`.
const KVM_GET_STATS_FD: libc::c_ulong = ((KVMIO as libc::c_ulong) << 8) | 0xce;
const _: () = assert!(KVM_GET_STATS_FD == 0xaece);

/// The layout that the parser relies on, checked against the kernel's structures.
const HEADER_LEN: usize = size_of::<kvm_stats_header>();
const DESCRIPTOR_LEN: usize = size_of::<kvm_stats_desc>();
const _: () = assert!(HEADER_LEN == 24);
const _: () = assert!(std::mem::offset_of!(kvm_stats_header, name_size) == 4);
const _: () = assert!(std::mem::offset_of!(kvm_stats_header, num_desc) == 8);
const _: () = assert!(std::mem::offset_of!(kvm_stats_header, desc_offset) == 16);
const _: () = assert!(std::mem::offset_of!(kvm_stats_header, data_offset) == 20);
const _: () = assert!(DESCRIPTOR_LEN == 16);
const _: () = assert!(std::mem::offset_of!(kvm_stats_desc, size) == 6);
const _: () = assert!(std::mem::offset_of!(kvm_stats_desc, offset) == 8);

/// The limits on a header, ten times those of any kernel: the file is untrusted input.
const MOST_DESCRIPTORS: u32 = 4096;
const LONGEST_NAME: u32 = 1024;

/// The widest span that [`KvmStats::read_many`] reads by one pread; values of a wider one are read one by one. The vCPU block
/// of Linux 6.18 has 1.3 KiB.
const SPAN_BYTES: usize = 4096;

/// KVM's statistics cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum StatsError {
    #[error("KVM gave no binary statistics (they need Linux 5.14 or later; SPTE counts will be missing)")]
    Unavailable(#[source] Errno),
    #[error("cannot read {what} of KVM's binary statistics")]
    Read {
        what: &'static str,
        #[source]
        errno: Errno,
    },
    #[error(
        "{what} of KVM's binary statistics is cut short: this kernel lays them out in a way unknown here"
    )]
    Short { what: &'static str },
    #[error("KVM's binary statistics make no sense here: {what}")]
    Layout { what: String },
}

/// A statistic of the [`KvmStats`] in which it was looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatIndex {
    /// Bytes from the start of the file.
    at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Descriptor {
    name: String,
    /// The number of `u64` values: 1 for counters, gauges and peaks, more for histograms.
    values: u16,
    /// Bytes from the start of the data block.
    offset: u32,
}

/// The statistics of one VM or one vCPU.
#[derive(Debug)]
pub struct KvmStats {
    fd: OwnedFd,
    data_offset: u64,
    descriptors: Vec<Descriptor>,
}

impl KvmStats {
    /// The statistics of a VM or a vCPU.
    pub fn of(vm_or_vcpu: &impl AsRawFd) -> Result<Self, StatsError> {
        // SAFETY: the request accesses no memory of this process; other descriptors refuse it.
        let raw = unsafe { libc::ioctl(vm_or_vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if raw < 0 {
            let error = std::io::Error::last_os_error();
            return Err(StatsError::Unavailable(Errno::from_io_error(&error).unwrap_or(Errno::NOTTY)));
        }
        // SAFETY: the kernel has just returned this descriptor, which has no other owner.
        Self::open(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    /// Reads header and descriptors from what `KVM_GET_STATS_FD` returned.
    pub fn open(fd: OwnedFd) -> Result<Self, StatsError> {
        let mut bytes = [0u8; HEADER_LEN];
        fill(&fd, &mut bytes, 0, "the header")?;
        let header = Header::parse(&bytes)?;
        let mut bytes = vec![0u8; header.descriptor_len() * header.num_desc as usize];
        fill(&fd, &mut bytes, u64::from(header.desc_offset), "the descriptors")?;
        let descriptors = bytes
            .chunks_exact(header.descriptor_len())
            .map(Descriptor::parse)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { fd, data_offset: u64::from(header.data_offset), descriptors })
    }

    /// All names, in the kernel's order, those of histograms too.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.descriptors.iter().map(|descriptor| descriptor.name.as_str())
    }

    /// Looks up a statistic that is a single number; `None` if the kernel has none of that name, or it is a histogram.
    pub fn index_of(&self, name: &str) -> Option<StatIndex> {
        let found = self.descriptors.iter().find(|one| one.values == 1 && one.name == name)?;
        Some(StatIndex { at: self.data_offset + u64::from(found.offset) })
    }

    /// The present value.
    pub fn read(&self, index: StatIndex) -> Result<u64, StatsError> {
        let mut value = [0u8; 8];
        fill(&self.fd, &mut value, index.at, "a value")?;
        Ok(u64::from_ne_bytes(value))
    }

    /// The present values, by one pread of their span. It neither locks nor allocates: it is called around every zap. The
    /// values are not an atomic snapshot, which the kernel does not offer.
    ///
    /// # Panics
    /// If `out` and `indices` differ in length.
    pub fn read_many(&self, indices: &[StatIndex], out: &mut [u64]) -> Result<(), StatsError> {
        assert_eq!(indices.len(), out.len(), "one value an index");
        let Some(first) = indices.iter().map(|index| index.at).min() else { return Ok(()) };
        let end = indices.iter().map(|index| index.at + 8).max().unwrap_or(first);
        let span = (end - first) as usize;
        if span > SPAN_BYTES {
            for (index, value) in indices.iter().zip(out) {
                *value = self.read(*index)?;
            }
            return Ok(());
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); SPAN_BYTES];
        let (bytes, _) = rustix::io::pread(&self.fd, &mut buffer[..span], first)
            .map_err(|errno| StatsError::Read { what: "the values", errno })?;
        for (index, value) in indices.iter().zip(out) {
            let at = (index.at - first) as usize;
            *value = word(bytes, at).ok_or(StatsError::Short { what: "the values" })?;
        }
        Ok(())
    }
}

struct Header {
    name_size: u32,
    num_desc: u32,
    desc_offset: u32,
    data_offset: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, StatsError> {
        let field = |at: usize| u32_at(bytes, at).ok_or(StatsError::Short { what: "the header" });
        let header = Self {
            name_size: field(4)?,
            num_desc: field(8)?,
            desc_offset: field(16)?,
            data_offset: field(20)?,
        };
        if header.num_desc > MOST_DESCRIPTORS || header.name_size > LONGEST_NAME || header.name_size == 0 {
            let what = format!("{} descriptors with names of {} bytes", header.num_desc, header.name_size);
            return Err(StatsError::Layout { what });
        }
        Ok(header)
    }

    fn descriptor_len(&self) -> usize {
        DESCRIPTOR_LEN + self.name_size as usize
    }
}

impl Descriptor {
    fn parse(bytes: &[u8]) -> Result<Self, StatsError> {
        const SHORT: StatsError = StatsError::Short { what: "a descriptor" };
        let values = bytes.get(6..8).and_then(|two| two.try_into().ok()).map(u16::from_ne_bytes);
        let offset = u32_at(bytes, 8).ok_or(SHORT)?;
        let name = bytes.get(DESCRIPTOR_LEN..).ok_or(SHORT)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name)
            .map_err(|_| StatsError::Layout { what: "a name is not text".to_owned() })?;
        Ok(Self { name: name.to_owned(), values: values.ok_or(SHORT)?, offset })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Fills `out`; an error names the part that was short. KVM may serve header, descriptors and data by separate reads.
fn fill(fd: &OwnedFd, mut out: &mut [u8], mut at: u64, what: &'static str) -> Result<(), StatsError> {
    while !out.is_empty() {
        match rustix::io::pread(fd, &mut *out, at) {
            Ok(0) => return Err(StatsError::Short { what }),
            Ok(done) => {
                out = &mut out[done..];
                at += done as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(StatsError::Read { what, errno }),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A statistics file as of the kernel: an ID between header and descriptors, a histogram of three values in the middle.
    fn sample(num_desc: u32) -> Vec<u8> {
        let (name_size, id_offset, desc_offset) = (16u32, 24u32, 40u32);
        let data_offset = desc_offset + 3 * (16 + name_size);
        let mut bytes = Vec::new();
        for field in [0, name_size, num_desc, id_offset, desc_offset, data_offset] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(*b"kvm-4711\0\0\0\0\0\0\0\0");
        for (name, values, offset) in [("pages_4k", 1u16, 32u32), ("halt_hist", 3, 8), ("pf_taken", 1, 0)] {
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend(0i16.to_ne_bytes());
            bytes.extend(values.to_ne_bytes());
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            let mut padded = name.as_bytes().to_vec();
            padded.resize(name_size as usize, 0);
            bytes.extend(padded);
        }
        for value in [70u64, 1, 2, 3, 44] {
            bytes.extend(value.to_ne_bytes());
        }
        bytes
    }

    fn file_of(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.into()
    }

    #[test]
    fn values_are_found_by_name_at_any_offset() {
        let stats = KvmStats::open(file_of(&sample(3))).unwrap();
        assert_eq!(stats.names().collect::<Vec<_>>(), ["pages_4k", "halt_hist", "pf_taken"]);
        let (pages, faults) = (stats.index_of("pages_4k").unwrap(), stats.index_of("pf_taken").unwrap());
        assert_eq!((stats.read(pages).unwrap(), stats.read(faults).unwrap()), (44, 70));
        let mut out = [0; 3];
        stats.read_many(&[pages, faults, pages], &mut out).unwrap();
        assert_eq!(out, [44, 70, 44]);
    }

    #[test]
    fn a_missing_statistic_is_not_found() {
        let stats = KvmStats::open(file_of(&sample(3))).unwrap();
        assert_eq!(stats.index_of("pages_1g"), None);
        assert_eq!(stats.index_of("halt_hist"), None, "a histogram is not a number");
        stats.read_many(&[], &mut []).unwrap();
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let short = KvmStats::open(file_of(&sample(3)[..60]));
        assert!(matches!(short, Err(StatsError::Short { what: "the descriptors" })), "{short:?}");
        let absurd = KvmStats::open(file_of(&sample(u32::MAX)));
        assert!(matches!(absurd, Err(StatsError::Layout { .. })), "{absurd:?}");
        let cut = sample(3);
        let stats = KvmStats::open(file_of(&cut[..cut.len() - 8])).unwrap();
        let pages = stats.index_of("pages_4k").unwrap();
        assert!(matches!(stats.read(pages), Err(StatsError::Short { .. })));
        assert!(matches!(stats.read_many(&[pages], &mut [0]), Err(StatsError::Short { .. })));
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn a_real_vm_has_statistics() {
        let vm = machine::Kvm::open().and_then(|kvm| kvm.create_vm()).unwrap();
        let stats = KvmStats::of(&vm).unwrap();
        let flushes = stats.index_of("remote_tlb_flush").expect("every x86 kernel since 5.14 has it");
        assert_eq!(stats.read(flushes).unwrap(), {
            let mut one = [u64::MAX];
            stats.read_many(&[flushes], &mut one).unwrap();
            one[0]
        });
        let not_kvm = tempfile::tempfile().unwrap();
        let refused = KvmStats::of(&not_kvm);
        assert!(matches!(refused, Err(StatsError::Unavailable(_))));
    }
}
