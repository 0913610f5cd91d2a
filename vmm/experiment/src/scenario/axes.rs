//! The axes of the matrix, and the combinations they make.

use std::collections::BTreeSet;
use std::fmt::Display;

use guest_mem::{Backing, Operation};
use notifier_bridge::Policy;

use super::at::At;
use super::error::{Checked, Fault, Lines, Problem};
use super::syntax::{AxesText, AxisText, ExcludeText};
use crate::choice::{CannotZap, Combination, Granule, PolicyChoice, Reclaim, Size, Word, Zap, ZapChoice};

/// A value, and the line it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub value: T,
    pub line: usize,
}

type Axis<T> = Vec<Located<T>>;

/// The axes of one case, its own values in place of the scenario's.
#[derive(Clone, Debug)]
pub struct Axes {
    backing: Axis<Backing>,
    policy: Axis<PolicyChoice>,
    reclaim: Axis<Reclaim>,
    granule: Axis<Granule>,
    zap: Axis<ZapChoice>,
    exclude: Vec<Exclusion>,
}

/// Leaves out the combinations that have all of these values.
#[derive(Clone, Copy, Debug)]
struct Exclusion {
    backing: Option<Backing>,
    policy: Option<PolicyChoice>,
    reclaim: Option<Reclaim>,
    granule: Option<Granule>,
    zap: Option<ZapChoice>,
}

impl Exclusion {
    fn check(text: &At<ExcludeText>, lines: &Lines) -> Checked<Self> {
        fn value<T>(word: Option<Word<T>>) -> Option<T> {
            word.map(|Word(value)| value)
        }
        let ExcludeText { backing, policy, reclaim, granule, zap } = *text.get_ref();
        let granule = value(granule)
            .map(|size| Granule::new(size.0).ok_or_else(|| lines.fault(text, Problem::Granule(size))))
            .transpose()?;
        let of = Self {
            backing: value(backing),
            policy: value(policy),
            reclaim: value(reclaim),
            granule,
            zap: value(zap),
        };
        let says_nothing = of.backing.is_none() && of.policy.is_none() && of.reclaim.is_none();
        if says_nothing && of.granule.is_none() && of.zap.is_none() {
            return Err(lines.fault(text, Problem::ExcludesAll));
        }
        Ok(of)
    }

    fn matches(&self, combination: &Combination) -> bool {
        fn like<T: PartialEq>(wanted: Option<T>, value: T) -> bool {
            wanted.is_none_or(|wanted| wanted == value)
        }
        like(self.backing, combination.backing)
            && like(self.policy, combination.policy)
            && like(self.reclaim, combination.reclaim)
            && like(self.granule, combination.granule)
            && self.zap.is_none_or(|zap| zap.under(combination.policy) == combination.zap)
    }
}

impl Axes {
    /// Checks the axes of a case whose name stands in `case_line`.
    pub(super) fn check(
        case: &AxesText,
        matrix: &AxesText,
        memory: u64,
        case_line: usize,
        lines: &Lines,
    ) -> Checked<Self> {
        let missing = |axis| Fault { line: case_line, problem: Problem::MissingAxis { axis } };
        let default = |value| vec![Located { value, line: case_line }];
        let granule = match axis("granule", &case.granule, &matrix.granule, lines)? {
            Some(sizes) => sizes.into_iter().map(|size| granule(size, memory)).collect::<Checked<_>>()?,
            None => vec![Located { value: Granule::DEFAULT, line: case_line }],
        };
        let axes = Self {
            backing: axis("backing", &case.backing, &matrix.backing, lines)?
                .ok_or_else(|| missing("backing"))?,
            policy: axis("policy", &case.policy, &matrix.policy, lines)?.ok_or_else(|| missing("policy"))?,
            reclaim: axis("reclaim", &case.reclaim, &matrix.reclaim, lines)?
                .unwrap_or_else(|| vec![Located { value: Reclaim::By(Operation::PageOut), line: case_line }]),
            granule,
            zap: axis("zap", &case.zap, &matrix.zap, lines)?.unwrap_or_else(|| default(ZapChoice::Auto)),
            exclude: Vec::new(),
        };
        axes.check_conflicts()?;
        axes.exclude(case, matrix, case_line, lines)
    }

    /// Leaves out what the case says, or else the scenario. What a case says must be there to be left out.
    fn exclude(
        mut self,
        case: &AxesText,
        matrix: &AxesText,
        case_line: usize,
        lines: &Lines,
    ) -> Checked<Self> {
        let Some(list) = case.exclude.as_ref().or(matrix.exclude.as_ref()) else { return Ok(self) };
        let all = self.combinations();
        for text in list.get_ref() {
            let exclusion = Exclusion::check(text, lines)?;
            if case.exclude.is_some() && !all.iter().any(|combination| exclusion.matches(combination)) {
                return Err(lines.fault(text, Problem::ExcludesNone));
            }
            self.exclude.push(exclusion);
        }
        if self.combinations().is_empty() {
            let line = case.exclude.as_ref().map_or(case_line, |list| lines.line_of(list));
            return Err(Fault { line, problem: Problem::ExcludesAll });
        }
        Ok(self)
    }

    fn check_conflicts(&self) -> Checked<()> {
        for reclaim in &self.reclaim {
            for backing in &self.backing {
                if let Some(why) = reclaim.value.refused_on(backing.value) {
                    let problem = Problem::Impossible { reclaim: reclaim.value, backing: backing.value, why };
                    return Err(Fault { line: reclaim.line, problem });
                }
            }
        }
        for zap in &self.zap {
            if zap.value != ZapChoice::Auto && self.announced().next().is_none() {
                return Err(Fault { line: zap.line, problem: Problem::NothingToZap });
            }
            for backing in &self.backing {
                for policy in self.announced() {
                    let zapped = zap.value.under(PolicyChoice::Announced(policy));
                    if let Some(why) = zapped.refused_for(policy, backing.value) {
                        // `auto` and the default are never the mistake: the backing is.
                        let line = if zap.value == ZapChoice::Auto { backing.line } else { zap.line };
                        let problem = match why {
                            CannotZap::UnmapLosesContent => Problem::UnmapLosesContent(backing.value),
                            CannotZap::ProtectHugetlbPage => Problem::ProtectHugetlbPage,
                        };
                        return Err(Fault { line, problem });
                    }
                }
            }
        }
        Ok(())
    }

    fn announced(&self) -> impl Iterator<Item = Policy> {
        self.policy.iter().filter_map(|policy| policy.value.announced())
    }

    pub(super) fn backings(&self) -> &[Located<Backing>] {
        &self.backing
    }

    pub(super) fn granules(&self) -> &[Located<Granule>] {
        &self.granule
    }

    /// Every combination once, backing outermost, then policy, reclaim, granule, zap, each as written.
    ///
    /// Two ways to zap that come to the same under a policy (`auto` and what it stands for; all of them under
    /// `kernel`) make one row.
    pub fn combinations(&self) -> Vec<Combination> {
        let mut made = Vec::new();
        for backing in &self.backing {
            for policy in &self.policy {
                for reclaim in &self.reclaim {
                    for granule in &self.granule {
                        let zaps: BTreeSet<Zap> =
                            self.zap.iter().map(|zap| zap.value.under(policy.value)).collect();
                        made.extend(zaps.into_iter().map(|zap| Combination {
                            backing: backing.value,
                            policy: policy.value,
                            reclaim: reclaim.value,
                            granule: granule.value,
                            zap,
                        }));
                    }
                }
            }
        }
        made.retain(|combination| !self.exclude.iter().any(|exclusion| exclusion.matches(combination)));
        made
    }
}

/// The case's own values if it has any, else the scenario's.
fn axis<T: Copy + PartialEq + Display>(
    name: &'static str,
    case: &AxisText<T>,
    matrix: &AxisText<T>,
    lines: &Lines,
) -> Checked<Option<Axis<T>>> {
    let Some(written) = case.as_ref().or(matrix.as_ref()) else { return Ok(None) };
    let mut axis: Axis<T> = Vec::new();
    for value in written.get_ref() {
        let Word(word) = *value.get_ref();
        if axis.iter().any(|earlier| earlier.value == word) {
            return Err(lines.fault(value, Problem::DuplicateValue { axis: name, value: word.to_string() }));
        }
        axis.push(Located { value: word, line: lines.line_of(value) });
    }
    if axis.is_empty() {
        return Err(lines.fault(written, Problem::EmptyAxis { axis: name }));
    }
    Ok(Some(axis))
}

fn granule(size: Located<Size>, memory: u64) -> Checked<Located<Granule>> {
    let fault = |problem| Fault { line: size.line, problem };
    let value = Granule::new(size.value.0).ok_or_else(|| fault(Problem::Granule(size.value)))?;
    if value.bytes() > memory {
        return Err(fault(Problem::GranuleAboveMemory { granule: size.value, memory: Size(memory) }));
    }
    Ok(Located { value, line: size.line })
}
