//! The axes of the matrix, and the combinations they make.

use std::collections::BTreeSet;
use std::fmt::Display;

use guest_mem::{Backing, Operation};
use notifier_bridge::Policy;

use super::error::{At, Checked, Fault, Problem, fault};
use super::syntax::{AxesText, AxisText, CaseText, ExcludeText};
use crate::choice::{Combination, Granule, PolicyChoice, Reclaim, Size, Word, Zap, ZapChoice};

type Axis<T> = Vec<At<T>>;

/// The axes of one case, its own values in place of the scenario's.
#[derive(Clone, Debug)]
pub struct Axes {
    backing: Axis<Backing>,
    policy: Axis<PolicyChoice>,
    reclaim: Axis<Reclaim>,
    granule: Axis<Granule>,
    zap: Axis<ZapChoice>,
    /// Each leaves out the combinations that have all of its values.
    exclude: Vec<ExcludeText>,
}

impl ExcludeText {
    fn matches(&self, combination: &Combination) -> bool {
        fn like<T: PartialEq>(wanted: Option<Word<T>>, value: T) -> bool {
            wanted.is_none_or(|Word(wanted)| wanted == value)
        }
        like(self.backing, combination.backing)
            && like(self.policy, combination.policy)
            && like(self.reclaim, combination.reclaim)
            && like(self.granule, combination.granule)
            && self.zap.is_none_or(|Word(zap)| zap.under(combination.policy) == combination.zap)
    }
}

impl Axes {
    /// Checks the axes of a case.
    pub(super) fn check(case: &CaseText, matrix: &AxesText, memory: u64) -> Checked<Self> {
        let (own, name) = (&case.matrix, &case.name);
        let pageout = Reclaim::By(Operation::PageOut);
        let axes = Self {
            backing: axis("backing", [&own.backing, &matrix.backing], None, name)?,
            policy: axis("policy", [&own.policy, &matrix.policy], None, name)?,
            reclaim: axis("reclaim", [&own.reclaim, &matrix.reclaim], Some(pageout), name)?,
            granule: axis("granule", [&own.granule, &matrix.granule], Some(Granule::DEFAULT), name)?,
            zap: axis("zap", [&own.zap, &matrix.zap], Some(ZapChoice::Auto), name)?,
            exclude: Vec::new(),
        };
        if let Some(large) = axes.granule.iter().find(|granule| granule.get_ref().bytes() > memory) {
            let (granule, memory) = (Size(large.get_ref().bytes()), Size(memory));
            return Err(fault(large, Problem::GranuleAboveMemory { granule, memory }));
        }
        axes.check_conflicts()?;
        axes.exclude(case, matrix)
    }

    /// Leaves out what the case says, or else the scenario. What a case says must be there to be left out.
    fn exclude(mut self, case: &CaseText, matrix: &AxesText) -> Checked<Self> {
        let own = case.matrix.exclude.as_ref();
        let Some(list) = own.or(matrix.exclude.as_ref()) else { return Ok(self) };
        let all = self.combinations();
        for text in list.get_ref() {
            let exclusion = *text.get_ref();
            if exclusion == ExcludeText::default() {
                return Err(fault(text, Problem::ExcludesAll));
            }
            if own.is_some() && !all.iter().any(|combination| exclusion.matches(combination)) {
                return Err(fault(text, Problem::ExcludesNone));
            }
            self.exclude.push(exclusion);
        }
        if self.combinations().is_empty() {
            let at = own.map_or(case.name.span(), At::span).start;
            return Err(Fault { at, problem: Problem::ExcludesAll });
        }
        Ok(self)
    }

    fn check_conflicts(&self) -> Checked<()> {
        for at in &self.reclaim {
            let reclaim = *at.get_ref();
            for backing in values(&self.backing) {
                if let Some(why) = reclaim.refused_on(backing) {
                    return Err(fault(at, Problem::Impossible { reclaim, backing, why }));
                }
            }
        }
        for zap in &self.zap {
            let is_auto = *zap.get_ref() == ZapChoice::Auto;
            if !is_auto && self.announced().next().is_none() {
                return Err(fault(zap, Problem::NothingToZap));
            }
            for backing in &self.backing {
                for policy in self.announced() {
                    let zapped = zap.get_ref().under(PolicyChoice::Announced(policy));
                    if let Some(why) = zapped.refused_for(policy, *backing.get_ref()) {
                        let problem = Problem::CannotZap(why);
                        // `auto` and the default are never the mistake: the backing is.
                        return Err(if is_auto { fault(backing, problem) } else { fault(zap, problem) });
                    }
                }
            }
        }
        Ok(())
    }

    fn announced(&self) -> impl Iterator<Item = Policy> {
        values(&self.policy).filter_map(PolicyChoice::announced)
    }

    pub(super) fn backings(&self) -> impl Iterator<Item = Backing> {
        values(&self.backing)
    }

    pub(super) fn granules(&self) -> &[At<Granule>] {
        &self.granule
    }

    /// Every combination once, backing outermost, then policy, reclaim, granule, zap, each as written.
    ///
    /// Two ways to zap that come to the same under a policy (`auto` and what it stands for; all of them under
    /// `kernel`) make one row.
    pub fn combinations(&self) -> Vec<Combination> {
        let mut made = Vec::new();
        for backing in values(&self.backing) {
            for policy in values(&self.policy) {
                let zaps: BTreeSet<Zap> = values(&self.zap).map(|zap| zap.under(policy)).collect();
                for reclaim in values(&self.reclaim) {
                    for granule in values(&self.granule) {
                        let combination = |&zap| Combination { backing, policy, reclaim, granule, zap };
                        made.extend(zaps.iter().map(combination));
                    }
                }
            }
        }
        made.retain(|combination| !self.exclude.iter().any(|exclusion| exclusion.matches(combination)));
        made
    }
}

fn values<T: Copy>(axis: &Axis<T>) -> impl Iterator<Item = T> {
    axis.iter().map(|at| *at.get_ref())
}

/// The case's own values if it has any, else the scenario's, else the default, which stands where the case's name does.
fn axis<T: Copy + PartialEq + Display>(
    axis: &'static str,
    [own, matrix]: [&AxisText<T>; 2],
    default: Option<T>,
    case: &At<String>,
) -> Checked<Axis<T>> {
    let Some(written) = own.as_ref().or(matrix.as_ref()) else {
        let value = default.ok_or_else(|| fault(case, Problem::MissingAxis { axis }))?;
        return Ok(vec![At::new(case.span(), value)]);
    };
    let mut values: Axis<T> = Vec::new();
    for at in written.get_ref() {
        let Word(value) = *at.get_ref();
        if values.iter().any(|earlier| *earlier.get_ref() == value) {
            return Err(fault(at, Problem::DuplicateValue { axis, value: value.to_string() }));
        }
        values.push(At::new(at.span(), value));
    }
    if values.is_empty() {
        return Err(fault(written, Problem::EmptyAxis { axis }));
    }
    Ok(values)
}
