//! The first stage: a scenario as it is written. Keys and types are checked here and nothing else; what they
//! mean together is the second stage's business.

use std::path::PathBuf;

use guest_mem::Backing;
use serde::Deserialize;

use super::error::At;
use super::linux::LinuxText;
use super::step::Action;
use super::uffd::UffdText;
use super::vocabulary::{AccessKind, DeviceTlb, Guest, HotPages, Unit, VictimKind, WalkKind};
use crate::choice::{ByteRange, Granule, PolicyChoice, Reclaim, Size, TimeSpan, Word, ZapChoice};

/// The values of one axis.
pub(super) type AxisText<T> = Option<At<Vec<At<Word<T>>>>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScenarioText {
    /// Lower-case letters, digits and hyphens.
    pub name: At<String>,
    /// One line about it.
    #[serde(default)]
    pub about: String,
    /// The memory under test: a multiple of 2 MiB, up to 62 GiB.
    pub memory: At<Word<Size>>,
    /// 1 to 32; default 1.
    pub vcpus: Option<At<u64>>,
    /// Seed of every choice; default 42.
    pub seed: Option<u64>,
    /// Trials of each row: counts must agree, times are pooled; default 1.
    pub repetitions: Option<At<u64>>,
    /// What runs in the machine; default `bare`.
    pub guest: Option<At<Word<Guest>>>,
    /// The kernel of a Linux guest, or a PVH image in place of the test guest; relative to the scenario.
    pub kernel: Option<PathBuf>,
    /// The Linux guest, of `guest = "linux"` only.
    pub linux: Option<At<LinuxText>>,
    /// How `reclaim = ["uffd"]` swaps.
    pub uffd: Option<At<UffdText>>,
    /// Whether deleting one memslot drops every SPTE of the VM, which is KVM's default; default false.
    pub slot_zap_all_quirk: Option<At<bool>>,
    /// Whether a device on the host's own page tables reads each victim before it is taken; default false.
    #[serde(default)]
    pub shared_tlb: DeviceTlb,
    /// Whether vCPU n runs on the n-th processor, and its userfaultfd handler too; default true.
    pub pinned: Option<bool>,
    /// What is tried.
    #[serde(default)]
    pub matrix: AxesText,
    /// A case; at least one.
    #[serde(default)]
    pub case: Vec<CaseText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AxesText {
    /// What fills the memory under test.
    pub backing: AxisText<Backing>,
    /// The range that is announced for a victim.
    pub policy: AxisText<PolicyChoice>,
    /// The operation that takes memory; default `pageout`.
    pub reclaim: AxisText<Reclaim>,
    /// Bytes of a memslot: a power of two, 4 KiB to the memory; default 2 MiB.
    pub granule: AxisText<Granule>,
    /// How the policy's range is zapped: `memslot` deletes and re-creates the memslots, `protect` calls mprotect (exact),
    /// `unmap` is for memfd only. Default `auto`: `memslot` for `slot` and `vm`, `protect` for the others.
    pub zap: AxisText<ZapChoice>,
    /// Combinations to leave out: each has some of the keys above, with one value.
    pub exclude: Option<At<Vec<At<ExcludeText>>>>,
}

/// The values of the combinations to leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExcludeText {
    pub backing: Option<Word<Backing>>,
    pub policy: Option<Word<PolicyChoice>>,
    pub reclaim: Option<Word<Reclaim>>,
    pub granule: Option<Word<Granule>>,
    pub zap: Option<Word<ZapChoice>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseText {
    /// Its name, the only one in the scenario.
    pub name: At<String>,
    /// One line.
    #[serde(default)]
    pub about: String,
    /// Axes of this case, in place of those of the scenario.
    #[serde(default)]
    pub matrix: AxesText,
    /// What must be true of each row: see [What must be true](expectations.md).
    #[serde(default)]
    pub expect: Vec<At<String>>,
    /// A step; at least one, and the first is `fill`.
    #[serde(default)]
    pub step: Vec<StepText>,
}

/// Every key that some step has. [`super::check_step`] knows which of them mean something to
/// this one: a tagged enum would know it here, but loses the line numbers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepText {
    /// What is done.
    #[serde(rename = "do")]
    pub action: At<Word<Action>>,
    /// `hot`: the pages of the loop; default `others`.
    pub pages: Option<At<Word<HotPages>>>,
    /// `hot`: how many pages; for `random` and `zipf` the visits of a pass; default all. `reclaim`: how many sparse victims.
    pub count: Option<At<u64>>,
    /// `hot`: in which order; default `list`. All others are over `pages = "all"`.
    pub walk: Option<At<Word<WalkKind>>>,
    /// `hot`: pages from one visit to the next, of `walk = "strided"`.
    pub stride: Option<At<u64>>,
    /// `hot`: of `walk = "zipf"`, above 0; default 1.0.
    pub exponent: Option<At<f64>>,
    /// `hot`: how a page is touched; default `read`.
    pub access: Option<At<Word<AccessKind>>>,
    /// `hot`: the vCPUs that run the loop; default `[0]`.
    pub vcpus: Option<At<Vec<At<u64>>>>,
    /// `baseline`: how long the loop is measured.
    #[serde(rename = "for")]
    pub length: Option<At<Word<TimeSpan>>>,
    /// `reclaim`: `count` units at seeded places; all units of `range`; or those that were not used, of
    /// `reclaim = ["uffd"]` only.
    pub victims: Option<At<Word<VictimKind>>>,
    /// `reclaim`: takes all of these bytes of the memory, in place of `victims`.
    pub range: Option<At<Word<ByteRange>>>,
    /// `reclaim`: what one operation takes; default `page` (4 KiB). A `folio` has the size of the backing, a `region` 2 MiB, and
    /// a `range` is taken at once.
    pub unit: Option<At<Word<Unit>>>,
    /// `reclaim`: the time from one operation to the next; default none.
    pub pace: Option<At<Word<TimeSpan>>>,
    /// `reclaim`, `victims = "idle"`: the bytes that may stay in memory.
    pub target: Option<At<Word<Size>>>,
    /// `reclaim`, `victims = "idle"`: how long pages are watched.
    pub after: Option<At<Word<TimeSpan>>>,
    /// `sh`: a command for the shell of a Linux guest.
    pub command: Option<At<String>>,
    /// `inflate`: bytes that the balloon takes from the guest kernel's own memory.
    pub size: Option<At<Word<Size>>>,
}

impl StepText {
    /// The keys that are set, with where they stand, without `do`.
    pub fn keys(&self) -> impl Iterator<Item = (&'static str, usize)> {
        fn set<T>(key: &'static str, value: &Option<At<T>>) -> Option<(&'static str, usize)> {
            value.as_ref().map(|value| (key, value.span().start))
        }
        [
            set("pages", &self.pages),
            set("count", &self.count),
            set("walk", &self.walk),
            set("stride", &self.stride),
            set("exponent", &self.exponent),
            set("access", &self.access),
            set("vcpus", &self.vcpus),
            set("for", &self.length),
            set("victims", &self.victims),
            set("range", &self.range),
            set("unit", &self.unit),
            set("pace", &self.pace),
            set("target", &self.target),
            set("after", &self.after),
            set("command", &self.command),
            set("size", &self.size),
        ]
        .into_iter()
        .flatten()
    }
}
