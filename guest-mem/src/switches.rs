//! The switches that a backing needs. One function, [`obstacle`], returns the first switch that is in the way and its cure;
//! every remedy is worded from its answer.
//!
//! ```text
//!   Backing, bytes, HostThp ── obstacle ──> reason, one Setting ── applied to the copy of HostThp ──┐
//!                                 ▲                                                                 │
//!                                 └────────────────── until there is no obstacle ───────────────────┘
//! ```

use std::fmt;

use crate::address::PMD_SIZE;
use crate::backing::Backing;
use crate::thp::{HUGETLB_2M, HostThp, ShmemSwitch, Switch, THP};
use crate::victim::Order;

/// More settings than the host has switches: the loop has to end even if a setting did not help.
const MOST: usize = 64;

/// A switch of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Knob {
    /// Whether mappings get anonymous huge pages, for sizes that inherit it and on kernels before 6.8.
    Thp,
    /// Whether mappings get anonymous folios of this order.
    ThpOf(Order),
    /// The same for shared memory.
    Shmem,
    /// The same for shared memory, folios of this order.
    ShmemOf(Order),
    /// How many pages the pool of 2 MiB hugetlb pages has.
    HugetlbPool,
}

impl Knob {
    /// The file.
    pub fn path(self) -> String {
        let of = |order: Order, file| format!("{THP}/hugepages-{}kB/{file}", order.bytes() >> 10);
        match self {
            Self::Thp => format!("{THP}/enabled"),
            Self::ThpOf(order) => of(order, "enabled"),
            Self::Shmem => format!("{THP}/shmem_enabled"),
            Self::ShmemOf(order) => of(order, "shmem_enabled"),
            Self::HugetlbPool => format!("{HUGETLB_2M}/nr_hugepages"),
        }
    }
}

/// The value of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Huge pages for mappings that ask for them.
    Asked,
    /// None of this size.
    Never,
    /// Pages in the pool.
    Pages(u64),
}

/// A switch and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setting {
    /// The switch.
    pub knob: Knob,
    /// The value.
    pub value: Value,
}

impl Setting {
    /// The text to write.
    pub fn text(&self) -> String {
        match (self.value, self.knob) {
            (Value::Asked, Knob::Shmem | Knob::ShmemOf(_)) => "advise".to_owned(),
            (Value::Asked, _) => "madvise".to_owned(),
            (Value::Never, _) => "never".to_owned(),
            (Value::Pages(pages), _) => pages.to_string(),
        }
    }
}

impl fmt::Display for Setting {
    /// The command for a shell.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "echo {} > {}", self.text(), self.knob.path())
    }
}

/// A change of the host that makes a backing available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// These settings, in this order.
    Set(Vec<Setting>),
    /// No setting helps, but this.
    Other(String),
}

impl Remedy {
    /// The settings; empty if none helps.
    pub fn settings(&self) -> &[Setting] {
        match self {
            Self::Set(settings) => settings,
            Self::Other(_) => &[],
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(settings) => {
                let commands: Vec<String> = settings.iter().map(Setting::to_string).collect();
                write!(f, "`{}`", commands.join("; "))
            }
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// The reason why a host cannot give a backing, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {remedy}")]
pub struct Unavailable {
    /// The first obstacle.
    pub reason: String,
    /// All settings that have to change.
    pub remedy: Remedy,
}

impl Backing {
    /// Why the host as it is now cannot give `bytes` of the backing, or `None` if its switches allow it. Every host has base
    /// pages, and is not asked: the switches of the others are some thirty files to read.
    pub fn unavailable_here(&self, bytes: u64) -> Option<Unavailable> {
        match self {
            Self::Base4k | Self::Memfd => None,
            _ => self.unavailable(bytes, &HostThp::read()),
        }
    }

    /// Why this host cannot give `bytes` of the backing, or `None` if its switches allow it.
    pub fn unavailable(&self, bytes: u64, host: &HostThp) -> Option<Unavailable> {
        let Obstacle { reason, cure } = obstacle(*self, bytes, host)?;
        let mut next = cure;
        let (mut host, mut settings) = (host.clone(), Vec::new());
        loop {
            match next {
                Cure::Words(words) => return Some(Unavailable { reason, remedy: Remedy::Other(words) }),
                Cure::Set(setting) => {
                    host.apply(setting);
                    settings.push(setting);
                }
            }
            match obstacle(*self, bytes, &host) {
                Some(obstacle) if settings.len() < MOST => next = obstacle.cure,
                _ => return Some(Unavailable { reason, remedy: Remedy::Set(settings) }),
            }
        }
    }
}

/// One reason why a backing is not available, and its cure.
struct Obstacle {
    reason: String,
    cure: Cure,
}

enum Cure {
    Set(Setting),
    Words(String),
}

impl Obstacle {
    fn set(reason: impl Into<String>, knob: Knob, value: Value) -> Self {
        Self { reason: reason.into(), cure: Cure::Set(Setting { knob, value }) }
    }

    fn words(reason: impl Into<String>, words: impl Into<String>) -> Self {
        Self { reason: reason.into(), cure: Cure::Words(words.into()) }
    }
}

/// The first reason why this host cannot give `bytes` of a backing.
fn obstacle(backing: Backing, bytes: u64, host: &HostThp) -> Option<Obstacle> {
    match backing {
        Backing::Base4k | Backing::Memfd => None,
        Backing::Thp => thp(host),
        Backing::Mthp(order) => mthp(order, host),
        Backing::MemfdThp => memfd_thp(host),
        Backing::Hugetlb2m => hugetlb(bytes, host),
    }
}

fn thp(host: &HostThp) -> Option<Obstacle> {
    if host.anonymous_switch(Order::PMD).serves_madvised() {
        return None;
    }
    if host.global.is_none() {
        return Some(Obstacle::words(
            "this kernel has no transparent huge pages",
            "it needs CONFIG_TRANSPARENT_HUGEPAGE",
        ));
    }
    // The size's own switch where there is one: the global one would bring along every size that inherits it.
    let own = host.anonymous.contains_key(&Order::PMD);
    let knob = if own { Knob::ThpOf(Order::PMD) } else { Knob::Thp };
    Some(Obstacle::set("transparent huge pages of 2 MiB are switched off", knob, Value::Asked))
}

fn mthp(order: Order, host: &HostThp) -> Option<Obstacle> {
    let kib = order.bytes() >> 10;
    if !host.anonymous.contains_key(&order) {
        return Some(Obstacle::words(
            format!("this kernel offers no anonymous folios of {kib} KiB"),
            "multi-size THP needs Linux 6.8 or later",
        ));
    }
    if !host.anonymous_switch(order).serves_madvised() {
        let reason = format!("anonymous folios of {kib} KiB are switched off");
        return Some(Obstacle::set(reason, Knob::ThpOf(order), Value::Asked));
    }
    // The kernel takes the largest size that is enabled and fits. 2 MiB is kept out by seams (see `Region`),
    // anything between cannot be: the VMAs would have to be as small as the folios.
    let larger = host.anonymous.keys().copied().find(|&other| {
        other > order && other < Order::PMD && host.anonymous_switch(other).serves_madvised()
    })?;
    let other = larger.bytes() >> 10;
    let reason = format!("folios of {other} KiB are enabled too, and the kernel takes the largest that fits");
    Some(Obstacle::set(reason, Knob::ThpOf(larger), Value::Never))
}

fn memfd_thp(host: &HostThp) -> Option<Obstacle> {
    if host.shmem_switch(Order::PMD).serves_madvised() {
        return None;
    }
    const OFF: &str = "huge pages in shared memory are switched off";
    match host.shmem_global {
        None => Some(Obstacle::words(
            "this kernel has no huge pages in shared memory",
            "it needs CONFIG_TRANSPARENT_HUGEPAGE and CONFIG_SHMEM",
        )),
        // This word silences the switches of the single sizes.
        Some(ShmemSwitch::Deny) => Some(Obstacle::set(OFF, Knob::Shmem, Value::Asked)),
        Some(_) if host.shmem.contains_key(&Order::PMD) => {
            Some(Obstacle::set(OFF, Knob::ShmemOf(Order::PMD), Value::Asked))
        }
        Some(_) => Some(Obstacle::set(OFF, Knob::Shmem, Value::Asked)),
    }
}

fn hugetlb(bytes: u64, host: &HostThp) -> Option<Obstacle> {
    let needed = bytes.div_ceil(PMD_SIZE);
    let Some(pool) = host.hugetlb_2m else {
        return Some(Obstacle::words(
            "this kernel has no hugetlb pages of 2 MiB",
            "it needs CONFIG_HUGETLBFS",
        ));
    };
    let missing = needed.checked_sub(pool.available()).filter(|missing| *missing > 0)?;
    let reason = match pool.total {
        0 => "the pool of 2 MiB hugetlb pages is empty".to_owned(),
        total => format!(
            "{needed} hugetlb pages of 2 MiB are needed, and {} of {total} are to be had",
            pool.available()
        ),
    };
    Some(Obstacle::set(reason, Knob::HugetlbPool, Value::Pages(pool.total.saturating_add(missing))))
}

impl HostThp {
    /// Applies a setting to the copy.
    fn apply(&mut self, setting: Setting) {
        let switch = match setting.value {
            Value::Asked => Switch::Madvise,
            Value::Never | Value::Pages(_) => Switch::Never,
        };
        match setting.knob {
            Knob::Thp => self.global = Some(switch),
            Knob::ThpOf(order) => {
                self.anonymous.insert(order, switch);
            }
            Knob::Shmem => {
                let asked = setting.value == Value::Asked;
                self.shmem_global = Some(if asked { ShmemSwitch::Advise } else { ShmemSwitch::Never });
            }
            Knob::ShmemOf(order) => {
                self.shmem.insert(order, switch);
            }
            Knob::HugetlbPool => {
                if let (Value::Pages(total), Some(pool)) = (setting.value, &mut self.hugetlb_2m) {
                    pool.free = (pool.free + total).saturating_sub(pool.total);
                    pool.total = total;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
