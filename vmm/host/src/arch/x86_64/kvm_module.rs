//! The KVM module of this host, and the kind of its secondary MMU.

use serde::Serialize;

use crate::root::Root;

/// The way in which KVM translates guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::Display, strum::IntoStaticStr)]
#[serde(into = "&'static str")]
pub enum MmuKind {
    /// Extended page tables (Intel).
    #[strum(serialize = "EPT")]
    Ept,
    /// Nested page tables (AMD).
    #[strum(serialize = "NPT")]
    Npt,
    /// Shadow paging: KVM shadows the guest's page tables, and each write to them costs an exit.
    #[strum(serialize = "shadow")]
    Shadow,
    /// Shadow paging without hardware virtualisation, where guest ring 0 is emulated as well.
    #[strum(serialize = "shadow (pvm)")]
    ShadowPvm,
}

impl MmuKind {
    fn is_two_dimensional(self) -> bool {
        matches!(self, Self::Ept | Self::Npt)
    }
}

/// KVM's module and its MMU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KvmFacts {
    /// `kvm_intel`, `kvm_amd`, `kvm_pvm`; `None` if none is loaded.
    pub module: Option<String>,
    /// The kind of its MMU; `None` if `/sys` does not tell.
    pub mmu: Option<MmuKind>,
    /// Whether two-dimensional paging uses the newer, mostly lockless TDP MMU.
    pub tdp_mmu: Option<bool>,
    /// Whether KVM splits huge pages against the iTLB multihit erratum where the guest executes.
    pub nx_huge_pages: Option<String>,
}

impl KvmFacts {
    /// Reads the files of a host.
    pub fn read_from(root: &Root) -> Self {
        let modules = root.names("/sys/module");
        let two_dimensional = |module: &str| {
            let parameter = if module == "kvm_intel" { "ept" } else { "npt" };
            root.flag(&format!("/sys/module/{module}/parameters/{parameter}"))
        };
        let module = vendor_module(&modules);
        Self {
            module: module.map(str::to_owned),
            mmu: module.and_then(|module| match module {
                // It has no such parameter.
                "kvm_pvm" => Some(MmuKind::ShadowPvm),
                module => mmu_kind(module, two_dimensional(module)),
            }),
            tdp_mmu: root.flag("/sys/module/kvm/parameters/tdp_mmu"),
            nx_huge_pages: root.text("/sys/module/kvm/parameters/nx_huge_pages"),
        }
    }

    /// Whether a guest's kernel is emulated, which takes minutes to start its first process and does not get further.
    pub fn emulates_guest_kernels(&self) -> bool {
        self.mmu == Some(MmuKind::ShadowPvm)
    }

    /// Whether faults go through the shadow MMU's code, as they also do for two-dimensional paging without the TDP MMU;
    /// `None` if `/sys` does not tell.
    pub fn shadows(&self) -> Option<bool> {
        match (self.mmu?.is_two_dimensional(), self.tdp_mmu) {
            (false, _) | (true, Some(false)) => Some(true),
            (true, Some(true)) => Some(false),
            (true, None) => None,
        }
    }

    /// The guests that the MMU runs; `None` if `/sys` does not tell the MMU.
    pub fn guests(&self) -> Option<Guests> {
        let module = self.module.as_deref().unwrap_or("KVM");
        Some(match self.mmu? {
            mmu @ (MmuKind::Ept | MmuKind::Npt) => {
                let tdp = match self.tdp_mmu {
                    Some(true) => "TDP MMU",
                    Some(false) => "without the TDP MMU",
                    None => "whether with the TDP MMU, /sys does not say",
                };
                Guests { text: format!("{mmu} ({module}, {tdp}): any guest runs"), remedy: None }
            }
            MmuKind::Shadow => Guests {
                text: format!(
                    "shadow page tables ({module}): guest page-table writes cost, SPTE counts include them"
                ),
                remedy: Some("load the module with ept=1 or npt=1"),
            },
            MmuKind::ShadowPvm => Guests {
                text:
                    "shadow page tables of kvm_pvm: the test guest runs in ring 3; a Linux guest's ring 0 is \
                       emulated and does not reach user space"
                        .to_owned(),
                remedy: Some("a host with kvm_intel or kvm_amd, or the nested rig"),
            },
        })
    }

    /// One of each MMU whose guests are limited, for tests of what is said about them.
    #[cfg(any(test, feature = "fixture"))]
    pub fn limited() -> [Self; 2] {
        [MmuKind::Shadow, MmuKind::ShadowPvm].map(|mmu| Self { mmu: Some(mmu), ..Self::default() })
    }
}

/// The guests that an MMU runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guests {
    /// The MMU, and how they run on it.
    pub text: String,
    /// The change by which any guest would run; `None` if any does.
    pub remedy: Option<&'static str>,
}

/// The vendor module among the loaded ones. KVM accepts the first that registers.
fn vendor_module(modules: &[String]) -> Option<&str> {
    let vendors = ["kvm_intel", "kvm_amd", "kvm_pvm"];
    modules.iter().map(String::as_str).find(|module| vendors.contains(module))
}

/// The kind of MMU by a module and its `ept` or `npt` parameter.
fn mmu_kind(module: &str, two_dimensional: Option<bool>) -> Option<MmuKind> {
    Some(match (module, two_dimensional?) {
        ("kvm_intel", true) => MmuKind::Ept,
        ("kvm_amd", true) => MmuKind::Npt,
        _ => MmuKind::Shadow,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_and_its_parameter_tell_the_mmu() {
        assert_eq!(mmu_kind("kvm_intel", Some(true)), Some(MmuKind::Ept));
        assert_eq!(mmu_kind("kvm_amd", Some(true)), Some(MmuKind::Npt));
    }

    #[test]
    fn without_two_dimensional_paging_it_shadows() {
        assert_eq!(mmu_kind("kvm_intel", Some(false)), Some(MmuKind::Shadow));
        assert_eq!(mmu_kind("kvm_amd", Some(false)), Some(MmuKind::Shadow));
    }

    #[test]
    fn the_tdp_mmu_alone_does_not_shadow() {
        let of = |mmu, tdp_mmu| KvmFacts { mmu, tdp_mmu, ..KvmFacts::default() }.shadows();
        assert_eq!(of(Some(MmuKind::Ept), Some(true)), Some(false));
        assert_eq!(of(Some(MmuKind::Npt), Some(false)), Some(true));
        assert_eq!(of(Some(MmuKind::ShadowPvm), None), Some(true));
        assert_eq!(of(Some(MmuKind::Shadow), Some(true)), Some(true));
        assert_eq!(of(Some(MmuKind::Ept), None), None);
        assert_eq!(of(None, Some(true)), None);
    }

    #[test]
    fn a_remedy_is_given_where_not_every_guest_runs() {
        let of = |mmu| KvmFacts { mmu: Some(mmu), ..KvmFacts::default() }.guests().unwrap().remedy.is_some();
        assert!([MmuKind::Shadow, MmuKind::ShadowPvm].map(of).iter().all(|has| *has));
        assert!(![MmuKind::Ept, MmuKind::Npt].map(of).iter().any(|has| *has));
    }

    #[test]
    fn two_dimensional_paging_is_told_with_its_mmu() {
        let of = |tdp_mmu| {
            let module = Some("kvm_intel".to_owned());
            KvmFacts { module, mmu: Some(MmuKind::Ept), tdp_mmu, nx_huge_pages: None }.guests().unwrap().text
        };
        assert_eq!(of(Some(true)), "EPT (kvm_intel, TDP MMU): any guest runs");
        assert_eq!(of(Some(false)), "EPT (kvm_intel, without the TDP MMU): any guest runs");
        assert!(of(None).contains("/sys does not say"));
    }

    #[test]
    fn helper_modules_are_not_kvm() {
        let loaded = ["irqbypass", "kvm", "kvm_amd", "kvmgt"].map(str::to_owned);
        assert_eq!(vendor_module(&loaded), Some("kvm_amd"));
        assert_eq!(vendor_module(&loaded[..2]), None);
    }
}
