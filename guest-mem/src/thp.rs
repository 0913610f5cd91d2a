//! The host's huge-page switches, as data.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use crate::victim::Order;

pub(crate) const THP: &str = "/sys/kernel/mm/transparent_hugepage";
pub(crate) const HUGETLB_2M: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// One switch of `transparent_hugepage/`, the bracketed word of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum Switch {
    /// For every mapping.
    Always,
    /// For mappings that asked.
    #[strum(serialize = "madvise", serialize = "advise", serialize = "within_size")]
    Madvise,
    /// As the global switch says.
    Inherit,
    /// Not at all.
    Never,
}

impl Switch {
    /// Whether a mapping with `MADV_HUGEPAGE` gets this size. [`Switch::Inherit`] must be resolved before.
    pub fn serves_madvised(self) -> bool {
        matches!(self, Self::Always | Self::Madvise)
    }
}

/// The global `shmem_enabled`, which knows two more words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
pub enum ShmemSwitch {
    /// For every file.
    Always,
    /// For mappings that asked, or up to the file's size.
    #[strum(serialize = "advise", serialize = "within_size")]
    Advise,
    /// Not for files that did not ask by mount option.
    Never,
    /// Not for any file, also those that asked.
    Deny,
    /// For every file, also those that did not ask.
    Force,
}

fn read_chosen<S: FromStr>(path: &Path) -> Option<S> {
    chosen(&fs::read_to_string(path).ok()?)
}

/// The bracketed word, as in `always inherit [madvise] never`.
fn chosen<S: FromStr>(text: &str) -> Option<S> {
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    word?.parse().ok()
}

/// The pool of 2 MiB hugetlb pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugetlbPool {
    /// Pages it has.
    pub total: u64,
    /// Those of them that hold nothing.
    pub free: u64,
    /// Free ones that are reserved for a mapping.
    pub reserved: u64,
    /// Pages that it may grow by when it is empty.
    pub overcommit: u64,
    /// Pages by which it has grown so.
    pub surplus: u64,
}

impl HugetlbPool {
    /// Pages that a new mapping can have.
    pub fn available(&self) -> u64 {
        let to_grow = self.overcommit.saturating_sub(self.surplus);
        self.free.saturating_sub(self.reserved).saturating_add(to_grow)
    }

    /// This host's pool; `None` where the kernel has no 2 MiB hugetlb pages.
    pub fn read() -> Option<Self> {
        Self::read_from(Path::new(HUGETLB_2M))
    }

    fn read_from(directory: &Path) -> Option<Self> {
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(directory.join(name)).ok()?.trim().parse().ok()
        };
        Some(Self {
            total: number("nr_hugepages")?,
            free: number("free_hugepages").unwrap_or(0),
            reserved: number("resv_hugepages").unwrap_or(0),
            overcommit: number("nr_overcommit_hugepages").unwrap_or(0),
            surplus: number("surplus_hugepages").unwrap_or(0),
        })
    }
}

/// The host's switches when they were read. A switch that the kernel lacks is off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostThp {
    /// `transparent_hugepage/enabled`.
    pub global: Option<Switch>,
    /// `transparent_hugepage/hugepages-*kB/enabled`, by folio order. Empty before Linux 6.8.
    pub anonymous: BTreeMap<Order, Switch>,
    /// `transparent_hugepage/shmem_enabled`.
    pub shmem_global: Option<ShmemSwitch>,
    /// `transparent_hugepage/hugepages-*kB/shmem_enabled`, by folio order. Empty before Linux 6.11.
    pub shmem: BTreeMap<Order, Switch>,
    /// The pool of 2 MiB hugetlb pages; `None` on a kernel without.
    pub hugetlb_2m: Option<HugetlbPool>,
}

impl HostThp {
    /// Reads the switches of this host.
    pub fn read() -> Self {
        Self::read_from(Path::new(THP), Path::new(HUGETLB_2M))
    }

    fn read_from(thp: &Path, hugetlb: &Path) -> Self {
        let mut host = Self {
            global: read_chosen(&thp.join("enabled")),
            anonymous: BTreeMap::new(),
            shmem_global: read_chosen(&thp.join("shmem_enabled")),
            shmem: BTreeMap::new(),
            hugetlb_2m: HugetlbPool::read_from(hugetlb),
        };
        for entry in fs::read_dir(thp).into_iter().flatten().flatten() {
            let Some(order) = entry.file_name().to_str().and_then(order_of_directory) else { continue };
            let switch = |name: &str| read_chosen(&entry.path().join(name));
            host.anonymous.extend(switch("enabled").map(|switch| (order, switch)));
            host.shmem.extend(switch("shmem_enabled").map(|switch| (order, switch)));
        }
        host
    }

    /// The switch that decides for anonymous folios of `order`, with `inherit` resolved.
    pub fn anonymous_switch(&self, order: Order) -> Switch {
        let global = self.global.unwrap_or(Switch::Never);
        match self.anonymous.get(&order) {
            Some(Switch::Inherit) => global,
            Some(switch) => *switch,
            None if self.anonymous.is_empty() && order == Order::PMD => global,
            None => Switch::Never,
        }
    }

    /// The switch that decides for folios of `order` in a memfd, with `inherit` resolved.
    pub fn shmem_switch(&self, order: Order) -> Switch {
        let word = self.shmem_global.unwrap_or(ShmemSwitch::Never);
        let global = match word {
            ShmemSwitch::Always | ShmemSwitch::Force => Switch::Always,
            ShmemSwitch::Advise => Switch::Madvise,
            ShmemSwitch::Never | ShmemSwitch::Deny => Switch::Never,
        };
        match (word, self.shmem.get(&order)) {
            // These two silence the switches of the single sizes.
            (ShmemSwitch::Deny, _) => Switch::Never,
            (ShmemSwitch::Force, _) if order == Order::PMD => Switch::Always,
            (_, Some(Switch::Inherit)) => global,
            (_, Some(switch)) => *switch,
            (_, None) if self.shmem.is_empty() && order == Order::PMD => global,
            (_, None) => Switch::Never,
        }
    }
}

/// `hugepages-64kB` is order 4.
fn order_of_directory(name: &str) -> Option<Order> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Order::of_bytes(kib.checked_mul(1 << 10)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bracketed_word_is_the_setting() {
        assert_eq!(chosen("always inherit [madvise] never\n"), Some(Switch::Madvise));
        assert_eq!(chosen("always [inherit] within_size advise never"), Some(Switch::Inherit));
        assert_eq!(chosen("always inherit [within_size] advise never"), Some(Switch::Madvise));
        assert_eq!(chosen::<Switch>("always madvise never"), None);
        assert_eq!(chosen::<Switch>(""), None);
        assert_eq!(chosen("always within_size advise never deny [force]\n"), Some(ShmemSwitch::Force));
        assert_eq!(chosen("always [within_size] advise never deny force\n"), Some(ShmemSwitch::Advise));
    }

    #[test]
    fn directories_name_orders() {
        assert_eq!(order_of_directory("hugepages-2048kB"), Some(Order::PMD));
        assert_eq!(order_of_directory("hugepages-64kB").map(Order::get), Some(4));
        assert_eq!(order_of_directory("hugepages-3kB"), None);
        assert_eq!(order_of_directory("khugepaged"), None);
    }

    #[test]
    fn a_tree_of_switches_is_read_whole() {
        let root = std::env::temp_dir().join(format!("guest-mem-thp-{}", std::process::id()));
        let size = root.join("hugepages-64kB");
        fs::create_dir_all(&size).unwrap();
        fs::write(root.join("enabled"), "always [madvise] never\n").unwrap();
        fs::write(size.join("enabled"), "always [inherit] madvise never\n").unwrap();
        fs::write(root.join("nr_hugepages"), "7\n").unwrap();
        let host = HostThp::read_from(&root, &root);
        fs::remove_dir_all(&root).unwrap();
        let order = Order::of_bytes(64 << 10).unwrap();
        assert_eq!(host.anonymous_switch(order), Switch::Madvise);
        assert_eq!(host.anonymous_switch(Order::PMD), Switch::Never);
        assert_eq!((host.shmem_global, host.hugetlb_2m.unwrap().total), (None, 7));
    }

    #[test]
    fn an_old_kernel_has_only_the_global_switch() {
        let host = HostThp {
            global: Some(Switch::Always),
            shmem_global: Some(ShmemSwitch::Advise),
            ..HostThp::default()
        };
        assert_eq!(host.anonymous_switch(Order::PMD), Switch::Always);
        assert_eq!(host.anonymous_switch(Order::of_bytes(64 << 10).unwrap()), Switch::Never);
        assert_eq!(host.shmem_switch(Order::PMD), Switch::Madvise);
    }
}
