//! How long it takes to unpack a distribution's kernel on the host: the file that `ZAPSCOPE_KERNEL` names, or the
//! newest `/boot/vmlinuz-*`. Nothing stands in for one: without a kernel this says so.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a bench prints is its result")]

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use linux_boot::Kernel;
use linux_boot::payload::LARGEST;

/// The kernel to unpack.
fn kernel() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ZAPSCOPE_KERNEL") {
        return Some(path.into());
    }
    let modified =
        |path: &PathBuf| path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let files = std::fs::read_dir("/boot").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz-")))
        .max_by_key(modified)
}

fn unpack(criterion: &mut Criterion) {
    let Some(path) = kernel() else {
        eprintln!("SKIPPED: unpack: ZAPSCOPE_KERNEL names no kernel, and /boot has no vmlinuz-*");
        return;
    };
    let file = std::fs::read(&path).expect("a kernel that can be read");
    let image = match Kernel::identify(&file) {
        Ok(Kernel::BzImage(image)) => image,
        Ok(Kernel::Elf(_)) => {
            eprintln!("SKIPPED: unpack: {} is an ELF kernel, there is nothing to unpack", path.display());
            return;
        }
        Err(refusal) => {
            eprintln!("SKIPPED: unpack: {} {refusal}", path.display());
            return;
        }
    };
    let unpacked = image.unpack(LARGEST).expect("a kernel that can be unpacked").len();
    let mut group = criterion.benchmark_group("unpack");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(5))
        .throughput(Throughput::Bytes(unpacked as u64));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    group.bench_function(name, |bencher| bencher.iter(|| image.unpack(LARGEST).map(|kernel| kernel.len())));
    group.finish();
}

criterion_group!(benches, unpack);
criterion_main!(benches);
