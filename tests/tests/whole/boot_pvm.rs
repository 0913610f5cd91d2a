//! Linux on kvm_pvm, which cannot run its user space: it gets as far as it can, and the process says so and ends.

use std::fs;
use std::path::Path;

use linux_boot::cpio::Writer;
use tests::host::MINIMAL_KERNEL;
use tests::{code, elf, program};

crate::tests! {
    a_minimal_linux_comes_to_its_first_process: [Pvm, MinimalKernel] within 1200,
}

/// The exit code where this host can run a guest no further.
const HOST_LIMIT: i32 = 3;

/// An initrd with a program as /init, and the console that the kernel opens for it.
fn initrd(path: &Path) {
    let mut archive = Writer::new(fs::File::create(path).unwrap());
    archive.directory("dev", 0o755).unwrap();
    archive.character_device("dev/console", 0o600, (5, 1)).unwrap();
    let program = elf::image(&code::spin());
    archive.file("init", 0o755, program.len() as u64, &mut &program[..]).unwrap();
    archive.finish().unwrap();
}

fn a_minimal_linux_comes_to_its_first_process() {
    let kernel = std::env::var(MINIMAL_KERNEL).unwrap();
    let directory = tempfile::tempdir().unwrap();
    initrd(&directory.path().join("initrd"));
    let arguments = ["boot", "--kernel", &kernel, "--initrd", "initrd", "--memory", "128MiB"];
    let child = program::grouped(directory.path(), &arguments).spawn().unwrap();
    let output = program::end_of_group_within(child, program::MINUTES);
    let (console, said) = (String::from_utf8_lossy(&output.stdout), program::stderr(&output));
    assert_eq!(output.status.code(), Some(HOST_LIMIT), "{said}\n{console}");
    assert!(console.contains("Linux version 6.12"), "{console}");
    assert!(console.contains("Run /init as init process"), "{console}");
    // Before: what it is in for. After: why it ended, and where to go on.
    assert!(said.contains("this host's KVM is kvm_pvm"), "{said}");
    assert!(said.contains("as far as it can here"), "{said}");
    assert!(said.contains("kvm_intel or kvm_amd") && said.contains("zapscope run"), "{said}");
}
