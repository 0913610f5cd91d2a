//! The first stage: a scenario as it is written. Keys and types are checked here and nothing else; what they
//! mean together is the second stage's business.

use std::path::PathBuf;

use guest_mem::Backing;
use serde::Deserialize;

use super::at::At;
use super::linux::LinuxText;
use super::uffd::UffdText;
use super::vocabulary::{AccessKind, Action, Guest, HotPages, Unit, VictimKind, WalkKind};
use crate::choice::{ByteRange, PolicyChoice, Reclaim, Size, TimeSpan, Word, ZapChoice};

/// The values of one axis.
pub(super) type AxisText<T> = Option<At<Vec<At<Word<T>>>>>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScenarioText {
    pub name: At<String>,
    #[serde(default)]
    pub about: String,
    pub memory: At<Word<Size>>,
    pub vcpus: Option<At<u64>>,
    pub seed: Option<u64>,
    pub repetitions: Option<At<u64>>,
    pub guest: Option<At<Word<Guest>>>,
    pub kernel: Option<PathBuf>,
    pub linux: Option<At<LinuxText>>,
    pub uffd: Option<At<UffdText>>,
    pub slot_zap_all_quirk: Option<At<bool>>,
    #[serde(default)]
    pub shared_tlb: bool,
    pub pinned: Option<bool>,
    #[serde(default)]
    pub matrix: AxesText,
    #[serde(default)]
    pub case: Vec<CaseText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AxesText {
    pub backing: AxisText<Backing>,
    pub policy: AxisText<PolicyChoice>,
    pub reclaim: AxisText<Reclaim>,
    pub granule: AxisText<Size>,
    pub zap: AxisText<ZapChoice>,
    pub exclude: Option<At<Vec<At<ExcludeText>>>>,
}

/// What a combination is like that is left out.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExcludeText {
    pub backing: Option<Word<Backing>>,
    pub policy: Option<Word<PolicyChoice>>,
    pub reclaim: Option<Word<Reclaim>>,
    pub granule: Option<Word<Size>>,
    pub zap: Option<Word<ZapChoice>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaseText {
    pub name: At<String>,
    #[serde(default)]
    pub about: String,
    #[serde(default)]
    pub matrix: AxesText,
    #[serde(default)]
    pub expect: Vec<At<String>>,
    #[serde(default)]
    pub step: Vec<StepText>,
}

/// Every key that some step has. Which of them mean something to this one is for [`super::step`] to say: a
/// tagged enum would do so here, but loses the line numbers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StepText {
    #[serde(rename = "do")]
    pub action: At<Word<Action>>,
    pub pages: Option<At<Word<HotPages>>>,
    pub count: Option<At<u64>>,
    pub walk: Option<At<Word<WalkKind>>>,
    pub stride: Option<At<u64>>,
    pub exponent: Option<At<f64>>,
    pub access: Option<At<Word<AccessKind>>>,
    pub vcpus: Option<At<Vec<At<u64>>>>,
    #[serde(rename = "for")]
    pub length: Option<At<Word<TimeSpan>>>,
    pub victims: Option<At<Word<VictimKind>>>,
    pub range: Option<At<Word<ByteRange>>>,
    pub unit: Option<At<Word<Unit>>>,
    pub pace: Option<At<Word<TimeSpan>>>,
    pub target: Option<At<Word<Size>>>,
    pub after: Option<At<Word<TimeSpan>>>,
    pub command: Option<At<String>>,
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
