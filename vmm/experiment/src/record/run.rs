//! A whole run.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::checked::Verdict;
use super::measured::{Measured, Warnings, saturating_sum};
use super::row::Row;
use host::HostChange;
use program::exit::{Class, Classified};

/// The version of the record that this program writes, and the newest it reads.
pub const SCHEMA: u32 = 1;

/// The key that says how a run ended.
pub const ENDED: &str = "ended";

/// A run: where, of what, and what it found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`SCHEMA`] when it was written.
    pub schema: u32,
    /// When it began, UTC.
    pub started_at: String,
    /// The end of the run: `complete`, `cancelled`, or `failed: ` and why. Null, with a warning, in the record of a run that goes
    /// on, or that was killed.
    pub ended: Measured<String>,
    /// The revision of the source this program was built from.
    pub source_revision: Measured<String>,
    /// The host.
    pub host: Host,
    /// `kvm` or `soft`.
    pub backend: String,
    /// The user of the memory: `bare`, or `Linux` and its release; nothing on the software MMU.
    pub guest: Option<String>,
    /// The scenario's text.
    pub scenario: String,
    /// The seed of all its choices.
    pub seed: u64,
    /// When the first vCPU first entered the guest, `CLOCK_MONOTONIC`.
    pub first_kvm_run_monotonic_ns: Measured<u64>,
    /// By what the kernel's own account was kept: `bpf` or `perf`.
    pub tap: Measured<String>,
    /// The cost of recording.
    #[serde(default)]
    pub overhead: Overhead,
    /// The changes of the host for the sake of the measurement; undone since, unless a warning says otherwise.
    #[serde(default)]
    pub host_changes: Vec<HostChange>,
    /// Warnings about the whole run.
    #[serde(default)]
    pub warnings: Warnings,
    /// The rows, in the scenario's order.
    pub rows: Vec<Row>,
}

/// The host of a run: the facts that a reader compares, and all others as they were read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel's release.
    pub kernel: Measured<String>,
    /// The module behind /dev/kvm.
    pub kvm_module: Measured<String>,
    /// The secondary MMU: EPT, NPT, shadow paging, or the software MMU.
    pub mmu_kind: Measured<String>,
    /// The processor.
    pub cpu: Measured<String>,
    /// All that was read of the host: huge pages, swap, cgroups and so on.
    #[serde(default)]
    pub facts: Value,
}

/// The cost of recording, measured in this run against runs without it. Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    /// One reading of the clock.
    pub clock_read_ns: Measured<f64>,
    /// One invalidation through the bridge with no listener: announced, nothing done, recorded.
    pub empty_invalidation_ns: Measured<f64>,
    /// One range that the kernel announces while its account is kept, beside one while it is not.
    pub tap_range_ns: Measured<f64>,
    /// One timed touch by the guest that meets no fault.
    pub guest_touch_ns: Measured<f64>,
}

/// A text that is no run record.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum RecordError {
    #[error(
        "no run record: it is no JSON object with a number `schema`; name a run.json that `zapscope run` wrote"
    )]
    NoRecord(#[source] serde_json::Error),
    #[error("a run record of schema {found}, and this zapscope reads up to {SCHEMA}: use a newer zapscope")]
    Newer { found: u32 },
    #[error("a run record of schema {schema} that is damaged; run the scenario again, or restore the file")]
    Damaged { schema: u32, source: serde_json::Error },
}

impl Classified for RecordError {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

impl RunRecord {
    /// Reads a record of this or an older schema.
    ///
    /// # Errors
    /// It is none, or newer, or damaged.
    pub fn from_json(text: &str) -> Result<Self, RecordError> {
        // The version decides how the rest is to be read, so it is read first and alone.
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let Version { schema } = serde_json::from_str(text).map_err(RecordError::NoRecord)?;
        if schema > SCHEMA {
            return Err(RecordError::Newer { found: schema });
        }
        serde_json::from_str(text).map_err(|source| RecordError::Damaged { schema, source })
    }

    /// The record as `run.json` has it.
    ///
    /// # Errors
    /// Never in practice: every key is a string and every number finite or null.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }

    /// Whether the run came to an end of its own. Older records, which do not say, are of runs that did.
    pub fn has_ended(&self) -> bool {
        !self.ended.is_null() || !self.warnings.explains(ENDED)
    }

    /// Operations whose two accounts disagree, in any row.
    pub fn account_differences(&self) -> u64 {
        saturating_sum(self.rows.iter().filter_map(|row| row.account_differences.get()))
    }

    /// Expectations that did not come true, in all rows.
    pub fn failed_expectations(&self) -> usize {
        let all = self.rows.iter().flat_map(|row| &row.expectations);
        all.filter(|checked| matches!(checked.verdict, Verdict::Fails { .. })).count()
    }

    /// Pages that came back wrong in any row.
    pub fn integrity_errors(&self) -> u64 {
        saturating_sum(self.rows.iter().filter_map(|row| row.integrity_errors.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use program::distribution::{Distribution, Samples};

    use crate::choice::{RowLabel, fixture};

    fn label() -> RowLabel {
        fixture::label(["sparse", "thp", "folio", "pageout", "protect", "kvm-slots"])
    }

    fn record() -> RunRecord {
        let mut warnings = Warnings::default();
        let mut samples = Samples::default();
        samples.record(1_500);
        let mut row = Row::could_not_run(label(), "");
        row.could_not_run = None;
        row.trials = 1;
        row.achieved = Measured::of([("thp".to_owned(), 0.97), ("4k".to_owned(), 0.03)].into());
        row.victims = Measured::of(256);
        row.refaults = Measured::of(0);
        row.zap_ns = Measured::of(samples.summary());
        row.collateral_ns = Measured::of(Distribution::default());
        row.kernel_ranges = row.warnings.not_measured("kernel_ranges", "the kernel tap was off");
        RunRecord {
            schema: SCHEMA,
            started_at: "2017-08-29T00:00:00Z".into(),
            ended: Measured::of("complete".into()),
            source_revision: warnings.not_measured("source_revision", "not built from a repository"),
            host: Host {
                kernel: Measured::of("6.18.0".into()),
                kvm_module: Measured::of("kvm_amd".into()),
                mmu_kind: Measured::of("NPT".into()),
                cpu: warnings.not_measured("cpu", "/proc/cpuinfo names none"),
                facts: Value::Null,
            },
            backend: "kvm".into(),
            guest: Some("bare".into()),
            scenario: "name = \"x\"".into(),
            seed: 42,
            first_kvm_run_monotonic_ns: Measured::of(17),
            tap: Measured::of("perf".into()),
            overhead: Overhead { clock_read_ns: Measured::of(21.5), ..Overhead::default() },
            host_changes: vec![
                HostChange::Zram { device: "/dev/zram0".into(), why: "swap for this run".into() },
                HostChange::Switch { path: "/x".into(), from: "a".into(), to: "b".into(), why: "thp".into() },
            ],
            warnings,
            rows: vec![row, Row::could_not_run(label(), "no swap; `zapscope run --zram 1g` makes some")],
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = record();
        let text = record.to_json().unwrap();
        assert_eq!(RunRecord::from_json(&text).unwrap(), record);
    }

    /// All keys are compared with a record that is kept, by the tests of the whole.
    #[test]
    fn times_are_eight_numbers_and_a_null_is_null() {
        let json: Value = serde_json::from_str(&record().to_json().unwrap()).unwrap();
        let row = &json["rows"][0];
        let times: Vec<&String> = row["zap_ns"].as_object().unwrap().keys().collect();
        for key in ["count", "min", "p50", "p90", "p99", "p999", "max", "sum"] {
            assert!(times.iter().any(|known| *known == key), "{key}");
        }
        assert_eq!((row["victims"].as_u64(), row["refaults"].as_u64()), (Some(256), Some(0)));
        assert!(row["kernel_ranges"].is_null());
        assert_eq!(row["achieved"]["thp"].as_f64(), Some(0.97));
    }

    #[test]
    fn a_null_without_a_reason_is_found() {
        let record = record();
        assert!(record.rows[0].unexplained().contains(&"needed_bytes"));
        assert!(!record.rows[0].unexplained().contains(&"kernel_ranges"));
        assert_eq!(record.rows[1].unexplained(), Vec::<&str>::new());
    }

    #[test]
    fn an_older_record_lacks_keys_and_a_newer_has_more() {
        let mut json: Value = serde_json::from_str(&record().to_json().unwrap()).unwrap();
        json["rows"][0].as_object_mut().unwrap().remove("lost_events");
        json["rows"][0]["added_later"] = Value::from(1);
        json["added_later"] = Value::from("x");
        json["host_changes"]
            .as_array_mut()
            .unwrap()
            .push(serde_json::json!({"change": "added-later", "what": 1}));
        let mut expected = record();
        expected.host_changes.push(HostChange::Unknown);
        assert_eq!(RunRecord::from_json(&json.to_string()).unwrap(), expected);
        json["schema"] = Value::from(SCHEMA + 1);
        let why = RunRecord::from_json(&json.to_string()).unwrap_err().to_string();
        assert!(why.contains("schema 2") && why.contains("newer zapscope"), "{why}");
    }

    #[test]
    fn a_run_that_goes_on_says_so_and_an_older_record_is_of_one_that_ended() {
        let mut record = record();
        assert!(record.has_ended());
        record.ended = record.warnings.not_measured(ENDED, "the run has not ended");
        let text = record.to_json().unwrap();
        assert!(!RunRecord::from_json(&text).unwrap().has_ended());
        let mut json: Value = serde_json::from_str(&text).unwrap();
        json.as_object_mut().unwrap().remove("ended");
        json["warnings"] = Value::Array(Vec::new());
        assert!(RunRecord::from_json(&json.to_string()).unwrap().has_ended());
    }

    #[test]
    fn what_is_no_record_is_told_from_a_damaged_one() {
        for text in ["", "{}", "[]", "{\"schema\": -1}", "name = 1"] {
            assert!(matches!(RunRecord::from_json(text), Err(RecordError::NoRecord(_))), "{text}");
        }
        let damaged = RunRecord::from_json("{\"schema\": 1, \"rows\": 3}");
        assert!(matches!(damaged, Err(RecordError::Damaged { schema: 1, .. })));
    }
}
