//! Every row of a scenario, one after another.

use std::borrow::Cow;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::SystemTime;

use guest_mem::{Backing, with_causes};
use machine::Kvm;

use super::ended::{Ended, RunError};
use super::journal::{self, Journal};
use super::no_row::{NoRow, failure, no_vm, unavailable};
use super::pressure::Pressure;
use super::sink::{NotKept, RowSink};
use super::so_far::{Known, RunSoFar};
use super::swap_watch::SwapWatch;
use super::tapping::{TapChoice, Tapping};
use super::trial::{Trial, TrialSetup};
use super::tune::Tuner;
use super::wiring::Wiring;
use crate::testbed::{KvmTestbed, LinuxError, LinuxMachine, LinuxSetup, SoftError, SoftTestbed, Testbed};
use experiment::choice::RowLabel;
use experiment::choice::{Listener, Reclaim, Zap};
use experiment::events::{Event, SecondaryMmu, Section};
use experiment::record::RowFold;
use experiment::record::{Row, RunRecord, utc};
use experiment::scenario::expect::check_all;
use experiment::scenario::{LinuxGuest, RowPlan, Scenario};
use guest::clock::TscRate;
use guest::elf;
use host::HostChange;
use host::kvm_module::KvmFacts;
use host::processors;
use host::resident;
use host::signals::Cancel;
use host::{HostChanges, Root};
use machine::BootError;
use machine::pc::PcError;
use machine::{Machine, SLOT_ZAP_QUIRK, VmConfig, VmError};
use program::input::{self, FileKind};

/// The user of the memory.
pub enum Backend {
    /// A guest under KVM.
    Kvm(Kvm),
    /// Workers on the software MMU.
    Soft,
}

impl Backend {
    /// Memslots for the arena: one is low memory's.
    pub fn arena_slots(&self) -> u64 {
        let all = match self {
            Self::Kvm(kvm) => kvm.get_nr_memslots() as u64,
            Self::Soft => guest_mem::MOST_SLOTS,
        };
        all.saturating_sub(1)
    }
}

/// Observer of a run's progress.
pub trait Progress {
    /// A row is about to be made: its number from 0, of how many, and what it is.
    fn row(&mut self, index: usize, of: usize, row: &RowPlan<'_>);
    /// The row is made.
    fn done(&mut self, row: &Row);
    /// It could not be put where it is kept. The run goes on, and each row that is finished is another try.
    fn not_kept(&mut self, why: &NotKept);
}

/// A run's results, and how it came to its end.
pub struct RunOutcome {
    /// The record, of as many rows as were made.
    pub record: RunRecord,
    /// The end of the run.
    pub ended: Ended,
    /// Rows that failed, as against those that this host cannot run.
    pub failed: u32,
}

/// Runs scenarios.
pub struct Runner<'a> {
    scenario: &'a Scenario,
    backend: Backend,
    image: Cow<'static, [u8]>,
    clock: TscRate,
    cancel: &'a Cancel,
    first_entry_ns: Option<u64>,
    /// The Linux guest, once a row needed it: it serves them all.
    linux: Option<Rc<LinuxMachine>>,
    tap: Tapping,
    /// Changes the host, its switches only with `--tune`.
    changes: Option<&'a HostChanges>,
    tuner: Option<Tuner<'a>>,
    /// The secondary MMU, once a row needed to know it.
    mmu: Option<SecondaryMmu>,
    /// The row being made, and what happens in it.
    row: u32,
    journal: Journal,
    /// The events of the row that was made last, for the log.
    events: Option<Section>,
    /// The rows whose hot loops were measured: the case, and the combination without its policy and its zap.
    refilled: Vec<(String, Backing, Reclaim, u64)>,
}

impl<'a> Runner<'a> {
    /// A runner of `scenario` on `backend`.
    ///
    /// # Errors
    /// The scenario names a guest kernel that cannot be read or is none, or a Linux guest that this host cannot run.
    pub fn new(scenario: &'a Scenario, backend: Backend, cancel: &'a Cancel) -> Result<Self, RunError> {
        let image = match (&scenario.kernel, &scenario.linux, &backend) {
            (Some(path), None, _) => {
                let image = input::read(FileKind::GuestKernel, path)?;
                elf::check(&image).map_err(|refused| RunError::Machine(BootError::from(refused).into()))?;
                image.into()
            }
            (None, Some(_), Backend::Kvm(_)) => return Err(RunError::NoLinuxKernel),
            (Some(kernel), Some(_), Backend::Kvm(_)) => {
                LinuxMachine::check(kernel).map_err(RunError::Linux)?;
                resources::GUEST.into()
            }
            _ => resources::GUEST.into(),
        };
        let clock = TscRate::begin();
        Ok(Self {
            scenario,
            backend,
            image,
            clock,
            cancel,
            first_entry_ns: None,
            linux: None,
            mmu: None,
            row: 0,
            journal: Journal::default(),
            events: None,
            refilled: Vec::new(),
            tap: Tapping::new(TapChoice::Off),
            changes: None,
            tuner: None,
        })
    }

    /// Has what rows need of the host made by `changes`, and with `tune` its switches set as each row needs them.
    #[must_use]
    pub fn changing(mut self, changes: &'a HostChanges, tune: bool) -> Self {
        self.changes = Some(changes);
        self.tuner = tune.then(|| Tuner::new(changes));
        self
    }

    /// Has the kernel's own account kept by `tap`.
    #[must_use]
    pub fn tapped(mut self, tap: Tapping) -> Self {
        self.tap = tap;
        self
    }

    /// Makes these rows, which are of the scenario's cases, and hands each to `sink` as soon as it is finished.
    pub fn run_rows(
        mut self,
        plans: &[RowPlan<'_>],
        progress: &mut dyn Progress,
        sink: &mut dyn RowSink,
    ) -> RunOutcome {
        let started_at = utc(SystemTime::now());
        let soft = matches!(self.backend, Backend::Soft);
        let (scenario, mut begun, mut failed) = (self.scenario, None, 0);
        // Called after the guest's first entry, which is not to wait for the facts of the host that this reads.
        let begin = || RunSoFar::begin(scenario, soft, started_at.clone());
        let mut ended = Ended::Complete;
        for (index, plan) in plans.iter().enumerate() {
            self.row = index as u32;
            progress.row(index, plans.len(), plan);
            let label = self.label(plan);
            let mut row = match self.row(plan) {
                Ok(row) => row,
                Err(NoRow::Unavailable(why)) => Row::could_not_run(label, why),
                Err(NoRow::Failed(why)) => {
                    failed += 1;
                    Row::could_not_run(label, format!("failed: {why}"))
                }
                Err(NoRow::Cancelled) => {
                    ended = Ended::Cancelled;
                    break;
                }
                // Earlier rows had a machine, so the refusal may be temporary: the run goes on.
                Err(NoRow::Fatal(error @ (RunError::Machine(_) | RunError::Linux(_)))) if begun.is_some() => {
                    failed += 1;
                    Row::could_not_run(label, format!("failed: {}", with_causes(&error)))
                }
                Err(NoRow::Fatal(error)) => {
                    ended = Ended::Failed(error);
                    break;
                }
            };
            row.expectations = check_all(&plan.case.expect, &row);
            progress.done(&row);
            let (known, events) = (self.known(), self.events.take().filter(|_| row.could_not_run.is_none()));
            let so_far = begun.get_or_insert_with(begin).add(row, known);
            if let Err(why) = sink.take(so_far, events) {
                progress.not_kept(&why);
            }
        }
        let run = begun.unwrap_or_else(begin);
        self.end(run, ended, failed)
    }

    fn label(&self, plan: &RowPlan<'_>) -> RowLabel {
        plan.label(Listener::of(plan.combination.policy, matches!(self.backend, Backend::Kvm(_))))
    }

    /// One row: as many trials as the scenario repeats, each on a machine of its own.
    fn row(&mut self, plan: &RowPlan<'_>) -> Result<Row, NoRow> {
        self.events = None;
        let (backing, memory) = (plan.combination.backing, self.scenario.memory);
        let untuned = self.tuner.as_mut().and_then(|tuner| tuner.prepare(backing, memory).err());
        if let Some(why) = unavailable(plan, memory, self.tuner.is_some()) {
            return Err(NoRow::Unavailable(
                untuned.map_or(why.clone(), |untuned| format!("{why}; {untuned}")),
            ));
        }
        self.journal = Journal::default();
        for _ in 0..self.scenario.repetitions {
            self.trial(plan)?;
        }
        let no_account = match self.backend {
            Backend::Soft => {
                Some("no KVM listens: the software MMU is no listener of the kernel's".to_owned())
            }
            Backend::Kvm(_) => self.tap.missing(),
        };
        no_account.into_iter().for_each(|why| self.journal.push(&Event::NoAccount(why)));
        let stream = self.journal.take();
        let mut row = RowFold::of(stream.events());
        match Section::new(self.row, &stream) {
            Ok(section) => self.events = Some(section),
            // The row is complete without its events.
            Err(error) => row.warnings.say(with_causes(&error)),
        }
        let settings = self.tuner.iter().flat_map(Tuner::settings);
        row.switches = settings.map(|setting| setting.to_string()).collect();
        Ok(row)
    }

    fn trial(&mut self, plan: &RowPlan<'_>) -> Result<(), NoRow> {
        let pressure = match plan.combination.reclaim {
            Reclaim::Cgroup => Some(Pressure::enter(self.changes).map_err(NoRow::Unavailable)?),
            Reclaim::By(_) | Reclaim::Uffd => None,
        };
        let testbed = self.testbed(plan)?;
        if self.first_entry_ns.is_none() {
            // The guest is up: what follows is the engine's loop and nothing else.
            resident::unmap_code();
        }
        self.first_entry_ns = self.first_entry_ns.or(testbed.first_entry_ns());
        let processors = match self.scenario.pinned {
            true => seat(&*testbed),
            false => vec![None; testbed.vcpus() as usize],
        };
        let wiring = Wiring::new(&*testbed, &plan.combination, self.scenario.shared_tlb);
        let pages = self.scenario.plan(plan);
        let mmu = *self.mmu.get_or_insert_with(|| match &self.backend {
            Backend::Soft => SecondaryMmu::Soft,
            Backend::Kvm(_) => SecondaryMmu::of(&KvmFacts::read_from(&Root::default())),
        });
        // One row of each kind is measured: the first that ends, and in which it is possible.
        let kind = Self::kind_of(plan);
        let refill = !self.refilled.contains(&kind);
        let setup = TrialSetup {
            testbed: &*testbed,
            steps: &plan.case.steps,
            plan: &pages,
            cgroup: pressure.as_ref().map(Pressure::group),
            uffd: &self.scenario.uffd,
            processors: &processors,
            tap: matches!(self.backend, Backend::Kvm(_)).then_some(&self.tap),
            clock: self.clock,
            refill,
            cancel: self.cancel,
            setting: journal::setting(self.scenario, self.label(plan), &*testbed, mmu),
        };
        let swaps = plan.combination.reclaim.uses_swap().then(|| SwapWatch::begin(self.own_swap_areas()));
        let refilled = Trial::new(setup, &wiring, &mut self.journal)
            .and_then(Trial::run)
            .map_err(|error| failure(plan, error, testbed.costs_one_row()))?;
        swaps.and_then(SwapWatch::end).into_iter().for_each(|warning| self.journal.warn(warning));
        if refilled {
            self.refilled.push(kind);
        }
        Ok(())
    }

    /// The swap areas that were made for this run.
    fn own_swap_areas(&self) -> Vec<PathBuf> {
        let made = self.changes.map(HostChanges::made).unwrap_or_default();
        let device = |change: HostChange| match change {
            HostChange::Zram { device, .. } => Some(device.into()),
            _ => None,
        };
        made.into_iter().filter_map(device).collect()
    }

    /// The label of a row without its policy and its zap: a replay takes rows of one kind together.
    fn kind_of(plan: &RowPlan<'_>) -> (String, Backing, Reclaim, u64) {
        let of = &plan.combination;
        (plan.case.name.clone(), of.backing, of.reclaim, of.granule.bytes())
    }

    fn testbed(&mut self, plan: &RowPlan<'_>) -> Result<Box<dyn Testbed>, NoRow> {
        if let (Some(guest), Backend::Kvm(_)) = (&self.scenario.linux, &self.backend) {
            return self.linux_testbed(plan, guest);
        }
        let (scenario, combination) = (self.scenario, &plan.combination);
        let (vcpus, arena) = (scenario.vcpus, scenario.memory);
        let granule = combination.granule.bytes();
        match &self.backend {
            Backend::Soft => match SoftTestbed::start(vcpus, arena, combination.backing, granule) {
                Ok(testbed) => Ok(Box::new(testbed)),
                Err(error @ (SoftError::Memory(_) | SoftError::Slots(_))) => {
                    Err(NoRow::Unavailable(with_causes(&error)))
                }
                Err(error) => Err(NoRow::Failed(with_causes(&error))),
            },
            Backend::Kvm(kvm) => {
                let config = VmConfig {
                    vcpus,
                    arena,
                    backing: combination.backing,
                    granule,
                    // A row that deletes no memslot does not care, and runs on kernels that cannot choose.
                    slot_zap_all_quirk: scenario.slot_zap_all_quirk || combination.zap != Zap::Memslot,
                };
                let machine = Machine::start(kvm, &config, &self.image).map_err(no_vm)?;
                let up = machine.wait_up();
                let testbed = KvmTestbed::bare(machine);
                up.map_err(|error| failure(plan, error.into(), testbed.costs_one_row()))?;
                Ok(Box::new(testbed))
            }
        }
    }

    /// The Linux guest with an arena for this row.
    fn linux_testbed(&mut self, plan: &RowPlan<'_>, guest: &LinuxGuest) -> Result<Box<dyn Testbed>, NoRow> {
        // One that an earlier row has cost its life is booted again.
        let machine = match &self.linux {
            Some(machine) if machine.is_alive() => machine.clone(),
            _ => {
                self.linux = None;
                self.linux.insert(Rc::new(self.boot_linux(guest)?)).clone()
            }
        };
        let combination = &plan.combination;
        let drops_all = machine.pc().memory().slot_zap_drops_all();
        if combination.zap == Zap::Memslot && drops_all && !self.scenario.slot_zap_all_quirk {
            return Err(no_vm(VmError::QuirkStays(SLOT_ZAP_QUIRK)));
        }
        let testbed = KvmTestbed::linux(machine, combination.backing, combination.granule.bytes());
        Ok(Box::new(testbed.map_err(no_vm)?))
    }

    fn boot_linux(&self, guest: &LinuxGuest) -> Result<LinuxMachine, NoRow> {
        let fatal = |error| NoRow::Fatal(RunError::Linux(error));
        let (Backend::Kvm(kvm), Some(kernel)) = (&self.backend, &self.scenario.kernel) else {
            return Err(NoRow::Fatal(RunError::NoLinuxKernel));
        };
        let setup = LinuxSetup {
            kernel,
            guest,
            vcpus: self.scenario.vcpus,
            arena: self.scenario.memory,
            slot_zap_all_quirk: self.scenario.slot_zap_all_quirk,
        };
        match LinuxMachine::start(kvm, &setup) {
            // Rows that delete no memslot run on kernels that cannot choose; those that do say so.
            Err(LinuxError::Machine(PcError::Vm(VmError::QuirkStays(_)))) => {
                LinuxMachine::start(kvm, &LinuxSetup { slot_zap_all_quirk: true, ..setup }).map_err(fatal)
            }
            result => result.map_err(fatal),
        }
    }

    /// The user of the memory, by name.
    fn guest_name(&self) -> Option<String> {
        if let Some(machine) = &self.linux {
            return Some(format!("Linux {}", machine.release()));
        }
        match (&self.backend, &self.scenario.kernel) {
            (Backend::Soft, _) => None,
            (Backend::Kvm(_), None) => Some("bare".to_owned()),
            (Backend::Kvm(_), Some(path)) => Some(format!("bare, from {}", path.display())),
        }
    }

    /// The facts about the run that are known by now.
    fn known(&self) -> Known {
        Known {
            guest: self.guest_name(),
            first_entry_ns: self.first_entry_ns,
            tap: self.tap.how(),
            host_changes: self.changes.map(HostChanges::made).unwrap_or_default(),
        }
    }

    /// Ends the run.
    fn end(self, run: RunSoFar, ended: Ended, failed: u32) -> RunOutcome {
        let kvm = match &self.backend {
            Backend::Kvm(kvm) => Some(kvm),
            Backend::Soft => None,
        };
        let record = run.end(&ended, self.known(), |warnings| self.tap.finish(kvm, warnings));
        RunOutcome { record, ended, failed }
    }
}

/// Seats each vCPU on a processor of its own, as far as there are enough, and says which; `None` for one whose thread stays
/// anywhere. The thread that takes memory is left where the scheduler puts it.
fn seat(testbed: &dyn Testbed) -> Vec<Option<usize>> {
    let seated = |(vcpu, processor): (u32, Option<usize>)| {
        processor.filter(|&processor| {
            testbed.thread(vcpu).is_some_and(|thread| processors::seat(thread, processor))
        })
    };
    (0..).zip(processors::for_vcpus(testbed.vcpus())).map(seated).collect()
}
