//! The listeners of a trial: the bridge of a combination, and a device on the host's own page tables if the scenario has one.

use std::sync::Arc;

use guest_mem::{HvaRange, MapLevel, PAGE_SIZE};
use notifier_bridge::{Bridge, HostMmu, Policy, ResolveError, SharedTlb, SharedTlbStats};

use crate::testbed::Testbed;
use experiment::choice::Combination;
use experiment::scenario::DeviceTlb;

/// Pages that the device caches: more than a trial takes in one operation, far fewer than an arena has.
const TLB_ENTRIES: usize = 1024;

type Tlb = SharedTlb<HostMmu<fn(guest_mem::Hva) -> MapLevel>>;

/// A device that walks the host's own page tables and caches what it found, as an IOMMU doing SVA does: the
/// sharing listener, told by flushes alone.
pub struct Device(Arc<Tlb>);

impl Device {
    fn over(testbed: &dyn Testbed) -> Self {
        // The level makes no difference to a TLB of 4 KiB pages.
        let probe: fn(guest_mem::Hva) -> MapLevel = |_| MapLevel::Pte;
        let primary = HostMmu::new([testbed.memory()], probe);
        Self(Arc::new(SharedTlb::new(primary, TLB_ENTRIES)))
    }

    /// Reads a byte of each page of `range`, at most as many pages as it can cache: a transfer that has just
    /// ended when the pages are taken.
    pub fn read(&self, range: HvaRange) -> Result<(), ResolveError> {
        let mut pages = range.chunks(PAGE_SIZE).take(TLB_ENTRIES);
        pages.try_for_each(|page| self.0.access(page.start(), false, |_, _| ()))
    }

    /// Counts of its TLB.
    pub fn stats(&self) -> SharedTlbStats {
        self.0.stats()
    }
}

/// The listeners of a trial.
pub struct Wiring {
    pub bridge: Arc<Bridge>,
    pub device: Option<Device>,
    /// Whether our announcements are those of the present kernel, so that its own account must have the same ranges.
    pub exact: bool,
}

impl Wiring {
    /// The listeners of `combination` on `testbed`, with the sharing device of `shared_tlb` beside them.
    pub fn new(testbed: &dyn Testbed, combination: &Combination, shared_tlb: DeviceTlb) -> Self {
        // The kernel of today announces as `modern` does; alone, it is only written down.
        let policy = combination.policy.announced().unwrap_or(Policy::Modern);
        let mut bridge = Bridge::new(policy, Arc::clone(testbed.slots()));
        if let Some(shadowing) = testbed.shadowing(combination.zap) {
            bridge = bridge.shadowing(shadowing);
        }
        let device = match shared_tlb {
            DeviceTlb::Absent => None,
            DeviceTlb::Exact => Some(Device::over(testbed)),
        };
        if let Some(device) = &device {
            bridge = bridge.sharing(device.0.clone());
        }
        let exact = policy.is_the_folio();
        Self { bridge: Arc::new(bridge), device, exact }
    }
}
