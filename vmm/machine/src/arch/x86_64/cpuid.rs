//! The CPUID of a PC: the leaves that this KVM supports, with the topology of this machine written into them.
//!
//! One socket, one thread a core, APIC identifiers 0, 1, 2 … Besides the topology only three things are
//! changed: the hypervisor bit is set, the TSC deadline timer is offered where KVM emulates it (KVM never
//! reports it itself), and asynchronous page faults are withheld. With those a guest runs another
//! task while a page comes from swap, and the cost of a fault is no longer a stall of the task that touched the page.

use kvm_bindings::kvm_cpuid_entry2;

const FEATURES: u32 = 1;
const CACHES: u32 = 4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const KVM_FEATURES: u32 = 0x4000_0001;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_MANY_LOGICAL: u32 = 1 << 28;
const AMD_ECX_LEGACY_MANY: u32 = 1 << 1;
/// `KVM_FEATURE_ASYNC_PF`, `_ASYNC_PF_VMEXIT`, `_ASYNC_PF_INT`.
const ASYNC_PAGE_FAULTS: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// Level types of the topology leaves.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// What CPUID depends on besides KVM's own leaves.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// This vCPU's index, which is its APIC identifier.
    pub vcpu: u32,
    /// How many there are.
    pub vcpus: u32,
    /// Whether KVM emulates the TSC deadline timer (`KVM_CAP_TSC_DEADLINE_TIMER`).
    pub tsc_deadline: bool,
}

impl Topology {
    /// Bits of an APIC identifier that tell the cores of the socket apart.
    fn core_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// Writes itself into the leaves that KVM supports.
    pub fn write_into(&self, entries: &mut [kvm_cpuid_entry2]) {
        for entry in entries {
            match entry.function {
                FEATURES => self.features(entry),
                CACHES | AMD_CACHES => self.cache(entry),
                TOPOLOGY | TOPOLOGY_V2 => self.level(entry),
                KVM_FEATURES => entry.eax &= !ASYNC_PAGE_FAULTS,
                AMD_FEATURES => set(&mut entry.ecx, AMD_ECX_LEGACY_MANY, self.vcpus > 1),
                // Cores less one, and the bits of an identifier that number them.
                AMD_SIZES => {
                    entry.ecx = entry.ecx & !0xf0ff | self.core_bits() << 12 | (self.vcpus - 1) & 0xff
                }
                // Identifier; core, of one thread; node 0 of one.
                AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (self.vcpu, self.vcpu & 0xff, 0),
                _ => {}
            }
        }
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2) {
        let logical = 1 << self.core_bits();
        entry.ebx = entry.ebx & 0xffff | (logical & 0xff) << 16 | self.vcpu << 24;
        entry.ecx |= ECX_HYPERVISOR;
        set(&mut entry.ecx, ECX_TSC_DEADLINE, self.tsc_deadline);
        set(&mut entry.edx, EDX_MANY_LOGICAL, self.vcpus > 1);
    }

    /// A first or second level cache belongs to a core, a third level to the socket.
    fn cache(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let sharing = if entry.eax >> 5 & 7 >= 3 { (1 << self.core_bits()) - 1 } else { 0 };
        entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        if entry.function == CACHES {
            // Cores of the socket; the field has six bits.
            let cores = ((1 << self.core_bits()) - 1) & 0x3f;
            entry.eax = entry.eax & !(0x3f << 26) | cores << 26;
        }
    }

    fn level(&self, entry: &mut kvm_cpuid_entry2) {
        let (shift, processors, kind) = match entry.index {
            0 => (0, 1, LEVEL_THREAD),
            1 => (self.core_bits(), self.vcpus, LEVEL_CORE),
            _ => (0, 0, 0),
        };
        (entry.eax, entry.ebx, entry.ecx) = (shift, processors, kind | entry.index & 0xff);
        entry.edx = self.vcpu;
    }
}

fn set(word: &mut u32, bits: u32, on: bool) {
    if on { *word |= bits } else { *word &= !bits }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
    }

    fn written(vcpu: u32, vcpus: u32, entry: kvm_cpuid_entry2) -> [u32; 4] {
        let mut entries = [entry];
        Topology { vcpu, vcpus, tsc_deadline: true }.write_into(&mut entries);
        [entries[0].eax, entries[0].ebx, entries[0].ecx, entries[0].edx]
    }

    #[test]
    fn the_features_leaf_tells_who_one_is_among_how_many() {
        let [_, ebx, ecx, edx] = written(2, 3, leaf(FEATURES, 0, [0x800f12, 0x0501_0800, 0, 0]));
        assert_eq!((ebx >> 24, ebx >> 16 & 0xff, ebx & 0xffff), (2, 4, 0x0800));
        // By the manual, not by our names for them: hypervisor and TSC deadline; more than one logical processor.
        assert_eq!((ecx, edx), (1 << 31 | 1 << 24, 1 << 28));
        let [_, ebx, _, edx] = written(0, 1, leaf(FEATURES, 0, [0, 0, 0, u32::MAX]));
        assert_eq!((ebx >> 16 & 0xff, !edx), (1, 1 << 28));
    }

    #[test]
    fn a_timer_that_kvm_does_not_emulate_is_not_offered() {
        let mut entries = [leaf(FEATURES, 0, [0, 0, 1 << 24, 0])];
        Topology { vcpu: 0, vcpus: 1, tsc_deadline: false }.write_into(&mut entries);
        assert_eq!(entries[0].ecx, 1 << 31);
    }

    /// The way Linux reads it (detect_extended_topology): shift the identifier by level 1's bits and every vCPU is
    /// in the same socket; by level 0's, and each is a core of its own.
    #[test]
    fn topology_levels_put_all_cores_into_one_socket() {
        for vcpus in [1, 2, 3, 8, 31, 32] {
            let mut cores = std::collections::BTreeSet::new();
            for vcpu in 0..vcpus {
                let [thread_shift, threads, thread, id] = written(vcpu, vcpus, leaf(TOPOLOGY, 0, [9; 4]));
                let [core_shift, cores_of_socket, core, _] = written(vcpu, vcpus, leaf(TOPOLOGY, 1, [9; 4]));
                assert_eq!((threads, thread, core), (1, 0x100, 0x201));
                assert_eq!((cores_of_socket, id, id >> core_shift), (vcpus, vcpu, 0));
                assert!(cores.insert(id >> thread_shift), "vCPU {vcpu} of {vcpus}");
            }
            let [_, processors, kind, _] = written(0, vcpus, leaf(TOPOLOGY, 2, [9; 4]));
            assert_eq!((processors, kind), (0, 2), "the end of the list");
        }
    }

    #[test]
    fn caches_are_shared_by_level() {
        let cache = |level: u32| leaf(CACHES, 0, [1 | level << 5 | 0xff << 14 | 0x3f << 26, 7, 8, 9]);
        let sharing = |eax: u32| (eax >> 14 & 0xfff, eax >> 26);
        assert_eq!(sharing(written(0, 4, cache(1))[0]), (0, 3));
        assert_eq!(sharing(written(0, 4, cache(3))[0]), (3, 3));
        assert_eq!(written(0, 4, leaf(CACHES, 4, [0, 1, 2, 3])), [0, 1, 2, 3], "no cache at all");
    }

    #[test]
    fn what_a_fault_costs_stays_with_whoever_faulted() {
        // KVM_FEATURE_ASYNC_PF, KVM_FEATURE_ASYNC_PF_VMEXIT, KVM_FEATURE_ASYNC_PF_INT.
        let withheld = !written(0, 1, leaf(KVM_FEATURES, 0, [u32::MAX, 0, 0, 0]))[0];
        assert_eq!(withheld, 1 << 4 | 1 << 10 | 1 << 14);
    }

    #[test]
    fn amd_counts_cores_less_one() {
        let [_, _, ecx, _] = written(0, 6, leaf(AMD_SIZES, 0, [0, 0, 0x0003_ffff, 0]));
        assert_eq!((ecx & 0xff, ecx >> 12 & 0xf, ecx >> 16), (5, 3, 3));
    }

    #[test]
    fn amd_says_where_a_vcpu_is_and_whether_it_is_alone() {
        assert_eq!(written(0, 2, leaf(AMD_FEATURES, 0, [1, 2, 0, 4])), [1, 2, 1 << 1, 4]);
        assert_eq!(written(0, 1, leaf(AMD_FEATURES, 0, [1, 2, u32::MAX, 4])), [1, 2, !(1 << 1), 4]);
        assert_eq!(written(0x103, 0x104, leaf(AMD_TOPOLOGY, 0, [9; 4])), [0x103, 3, 0, 9]);
    }
}
