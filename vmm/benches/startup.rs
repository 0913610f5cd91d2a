//! From exec to the first KVM_RUN, against the least a C program can do (tests/peers/minimal.c).
//!
//! The two take turns. Of the C program the whole process counts, from before its start to after its end; of
//! zapscope the time until it first enters the guest, which it writes into its run record on the same clock.
//! What is printed last is the median of the paired ratios: only ratios within one run mean anything.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use notifier_bridge::monotonic_ns;

/// A guest of 256 MiB in one memslot, as the C program has it, that does next to nothing.
const SCENARIO: &str = r#"
name = "startup"
memory = "256MiB"
[matrix]
backing = ["4k"]
policy = ["kernel"]
reclaim = ["dontneed"]
granule = ["256MiB"]
[[case]]
name = "nothing"
[[case.step]]
do = "fill"
[[case.step]]
do = "reclaim"
range = "0..2MiB"
unit = "range"
"#;

const PAIRS: usize = 31;

struct Place {
    directory: tempfile::TempDir,
    minimal: PathBuf,
}

impl Place {
    fn prepare() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let minimal = directory.path().join("minimal");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/peers/minimal.c");
        let compiled = Command::new("cc").args(["-O2", "-o"]).arg(&minimal).arg(source).status();
        assert!(compiled.expect("cc is what links Rust too").success());
        std::fs::write(directory.path().join("s.toml"), SCENARIO).expect("the directory is ours");
        Self { directory, minimal }
    }

    /// The whole minimal process.
    fn minimal(&self) -> Duration {
        let begun = monotonic_ns();
        let status = Command::new(&self.minimal).stdin(Stdio::null()).status().expect("compiled above");
        assert!(status.success(), "the minimal program failed: {status}");
        Duration::from_nanos(monotonic_ns() - begun)
    }

    /// zapscope up to its first KVM_RUN.
    fn zapscope(&self) -> Duration {
        let begun = monotonic_ns();
        let output = Command::new(env!("CARGO_BIN_EXE_zapscope"))
            .args(["run", "s.toml", "--backend", "kvm", "--json"])
            .current_dir(self.directory.path())
            .output()
            .expect("built by cargo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let record: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a run record");
        let first = record["first_kvm_run_monotonic_ns"].as_u64().expect("a guest ran");
        Duration::from_nanos(first - begun)
    }
}

fn startup(criterion: &mut Criterion) {
    let place = Place::prepare();
    let mut group = criterion.benchmark_group("startup");
    group.sample_size(10);
    group.bench_function("minimal C program, whole process", |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| place.minimal()).sum());
    });
    group.bench_function("zapscope, exec to the first KVM_RUN", |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| place.zapscope()).sum());
    });
    group.finish();
    let mut ratios: Vec<f64> = (0..PAIRS)
        .map(|_| {
            let minimal = place.minimal();
            place.zapscope().as_secs_f64() / minimal.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!("startup: zapscope / minimal C, median of {PAIRS} pairs: {:.2} (bound 2)", ratios[PAIRS / 2]);
}

criterion_group!(benches, startup);
criterion_main!(benches);
