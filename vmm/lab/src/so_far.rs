//! A run's record while its rows are made. Facts that do not change meanwhile are read once.

use super::calibrate;
use super::ended::Ended;
use experiment::events::SecondaryMmu;
use experiment::record::{ENDED, Host, Measured, Overhead, Row, RunRecord, SCHEMA, Warnings};
use experiment::scenario::Scenario;
use host::HostChange;
use host::HostFacts;

/// The source revision this program was built from, if it was built from a repository.
const REVISION: Option<&str> = option_env!("ZAPSCOPE_REVISION");

/// The reason for null keys that are known only at the end.
const NOT_ENDED: &str =
    "the run has not ended: it goes on, or it was killed after the last row of this record";

/// Facts that are known once rows are made.
pub struct Known {
    pub guest: Option<String>,
    /// When the first vCPU first entered the guest, `CLOCK_MONOTONIC`.
    pub first_entry_ns: Option<u64>,
    pub tap: Option<&'static str>,
    pub host_changes: Vec<HostChange>,
}

/// The record of a run that has not ended.
pub struct RunSoFar {
    record: RunRecord,
    /// The warnings that stay, however the run goes on.
    lasting: Warnings,
    soft: bool,
}

impl RunSoFar {
    /// A run without a row.
    pub fn begin(scenario: &Scenario, soft: bool, started_at: String) -> Self {
        let mut lasting = Warnings::default();
        let facts = HostFacts::read();
        facts.warnings(None).into_iter().for_each(|warning| lasting.say(warning));
        if soft {
            lasting.say("no guest ran: worker threads accessed the memory through the software MMU, as a device would");
        }
        let record = RunRecord {
            schema: SCHEMA,
            started_at,
            ended: Measured::absent(),
            source_revision: Measured::or_why(
                REVISION.map(str::to_owned),
                &mut lasting,
                "source_revision",
                "not built from a repository",
            ),
            host: host(&facts, soft, &mut lasting),
            backend: if soft { "soft" } else { "kvm" }.to_owned(),
            guest: None,
            scenario: scenario.text().to_owned(),
            seed: scenario.seed,
            first_kvm_run_monotonic_ns: Measured::absent(),
            tap: Measured::absent(),
            overhead: Overhead::default(),
            host_changes: Vec::new(),
            warnings: Warnings::default(),
            rows: Vec::new(),
        };
        Self { record, lasting, soft }
    }

    /// Adds a finished row, and returns the record as it stands.
    pub fn add(&mut self, row: Row, known: Known) -> &RunRecord {
        self.record.rows.push(row);
        let tap = known.tap;
        let mut warnings = self.learn(known);
        let record = &mut self.record;
        record.ended = warnings.not_measured(ENDED, NOT_ENDED);
        record.tap = Measured::or_why(tap.map(str::to_owned), &mut warnings, "tap", NOT_ENDED);
        let mut later = |key: &str| warnings.not_measured(key, NOT_ENDED);
        record.overhead = Overhead {
            clock_read_ns: later("overhead.clock_read_ns"),
            empty_invalidation_ns: later("overhead.empty_invalidation_ns"),
            tap_range_ns: later("overhead.tap_range_ns"),
            guest_touch_ns: later("overhead.guest_touch_ns"),
        };
        record.warnings = warnings;
        record
    }

    /// The record of the run that ended so. `tap` is how the kernel's account was kept, and its cost.
    pub fn end(
        mut self,
        ended: &Ended,
        known: Known,
        tap: impl FnOnce(&mut Warnings) -> (Measured<String>, Measured<f64>),
    ) -> RunRecord {
        let mut warnings = self.learn(known);
        let mut record = self.record;
        record.ended = Measured::of(ended.to_string());
        let (tap, tap_range_ns) = tap(&mut warnings);
        record.tap = tap;
        record.overhead = Overhead { tap_range_ns, ..overhead(&record.rows, &mut warnings) };
        record.warnings = warnings;
        record
    }

    /// Takes the facts over. Returns the warnings that stay, and those about facts that are missing.
    fn learn(&mut self, known: Known) -> Warnings {
        let mut warnings = self.lasting.clone();
        self.record.guest = known.guest;
        self.record.host_changes = known.host_changes;
        let why = if self.soft { "no guest ran" } else { "no machine came up" };
        self.record.first_kvm_run_monotonic_ns =
            Measured::or_why(known.first_entry_ns, &mut warnings, "first_kvm_run_monotonic_ns", why);
        warnings
    }
}

fn host(facts: &HostFacts, soft: bool, warnings: &mut Warnings) -> Host {
    let mmu = if soft { Some("software MMU".to_owned()) } else { facts.kvm.mmu.map(|kind| kind.to_string()) };
    if !soft && SecondaryMmu::of(&facts.kvm) == SecondaryMmu::Unknown {
        warnings.note(
            "host.mmu_kind",
            "/sys/module does not say which secondary MMU this KVM has: a replay of this run predicts no faults",
        );
    }
    let mut known =
        |key: &str, value: Option<String>| Measured::or_why(value, warnings, key, "the host does not say");
    Host {
        kernel: known("host.kernel", Some(facts.kernel.clone())),
        kvm_module: known("host.kvm_module", facts.kvm.module.clone()),
        mmu_kind: known("host.mmu_kind", mmu),
        cpu: known("host.cpu", facts.cpu.clone()),
        facts: serde_json::to_value(facts).unwrap_or_default(),
    }
}

fn overhead(rows: &[Row], warnings: &mut Warnings) -> Overhead {
    let fastest = rows.iter().filter_map(|row| row.guest_touches_before.get()).fold(0.0, f64::max);
    let touch = (fastest > 0.0).then(|| 1e9 / fastest);
    Overhead {
        clock_read_ns: Measured::of(calibrate::clock_read_ns()),
        empty_invalidation_ns: Measured::of(calibrate::empty_invalidation_ns()),
        tap_range_ns: Measured::absent(),
        guest_touch_ns: Measured::or_why(
            touch,
            warnings,
            "overhead.guest_touch_ns",
            "no row came to the end of a baseline",
        ),
    }
}
