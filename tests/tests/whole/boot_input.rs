//! Bad input to `zapscope boot`, and to a scenario in a Linux guest: refused at once, by name and reason, with
//! nothing left behind.

use std::path::Path;

use rustix::process::Resource;
use tests::host::pvm;
use tests::place::{Ended, Place};
use tests::swaps::Swaps;
use tests::{bzimage, code, elf, program, stand_in, xz};

crate::tests! {
    files_that_are_no_kernel_are_refused: [],
    kernels_that_do_not_unpack_are_refused: [Kvm],
    kernels_that_do_not_fit_are_refused: [Kvm],
    a_dictionary_that_there_is_no_memory_for_is_an_error: [Kvm],
    bad_initrds_are_refused: [],
    an_initrd_larger_than_memory_is_refused: [Kvm],
    bad_sizes_are_refused: [],
    bad_disks_are_refused: [],
    a_disk_that_may_only_be_read_is_refused_for_writing: [NotRoot],
    a_read_only_disk_may_be_one_that_may_only_be_read: [Kvm],
    bad_command_lines_are_refused: [Kvm],
    a_linux_guest_that_makes_no_sense_is_refused: [Kvm],
    kvm_pvm_refuses_a_linux_guest_before_it_changes_anything: [Pvm],
}

/// What the user has to change, and what this host cannot.
const MISTAKE: i32 = 2;
const HOST: i32 = 3;

/// A directory with the kernel `good`, which would switch itself off.
struct Inputs(Place);

impl Inputs {
    fn new() -> Self {
        let place = Place::new();
        place.put("good", bzimage::kernel(&code::power_off()));
        Self(place)
    }

    /// A file of zeroes that takes no room.
    fn put_sparse(&self, name: &str, len: u64) {
        std::fs::File::create(self.0.file(name)).unwrap().set_len(len).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        program::end_of_group(program::grouped(self.0.path(), arguments).spawn().unwrap()).into()
    }

    /// The command line is refused with this exit code and these words, and leaves the directory as it was.
    #[track_caller]
    fn refuses(&self, code: i32, arguments: &[&str], words: &[&str]) -> Ended {
        let before = listing(self.0.path());
        let ended = self.run(arguments).with(code).says(words);
        assert!(ended.out.is_empty(), "{arguments:?} is no console: {}", ended.text());
        assert_eq!(listing(self.0.path()), before, "{arguments:?}");
        ended
    }

    /// `boot` of the good kernel is refused for what else it is given.
    #[track_caller]
    fn refuses_with(&self, code: i32, more: &[&str], words: &[&str]) {
        self.refuses(code, &[&["boot", "--kernel", "good"], more].concat(), words);
    }
}

/// Names and sizes.
fn listing(directory: &Path) -> Vec<(std::ffi::OsString, u64)> {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let mut entries: Vec<_> =
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().len())).collect();
    entries.sort();
    entries
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn files_that_are_no_kernel_are_refused() {
    let place = Inputs::new();
    let good = bzimage::kernel(&code::power_off());
    let with = |mut image: Vec<u8>, at: usize, bytes: &[u8]| {
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    let guest = || elf::image(&code::power_off());
    let mut arm64_image = vec![0; 4096];
    arm64_image[..2].copy_from_slice(b"MZ");
    arm64_image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    for (name, bytes, words) in [
        ("empty", Vec::new(), ["is empty", ""]),
        ("text", b"#!/bin/sh\nexec true\n".repeat(100), ["is no kernel, but a text file", "`#!/bin/sh`"]),
        ("noise", noise(100_000), ["is no kernel", "bzImage"]),
        ("half", good[..good.len() / 2].to_vec(), ["is a bzImage, but it is truncated", "syssize"]),
        ("header", good[..0x210].to_vec(), ["is a bzImage, but", "truncated"]),
        ("x86-32", with(good.clone(), 0x236, &[0, 0]), ["is a 32-bit kernel", "XLF_KERNEL_64"]),
        ("zimage", with(good.clone(), 0x211, &[0]), ["is a zImage", "bzImage"]),
        ("arm64-Image", arm64_image, ["AArch64", "x86-64"]),
        // EI_CLASS, and e_machine: EM_386, EM_ARM, EM_AARCH64.
        ("i386.elf", with(with(guest(), 4, &[1]), 18, &[3]), ["32-bit", "x86-64 ELF executable is needed"]),
        ("arm.elf", with(with(guest(), 4, &[1]), 18, &[40]), ["32-bit", "x86-64 ELF executable is needed"]),
        ("arm64.elf", with(guest(), 18, &[183]), ["AArch64", "x86-64 ELF executable is needed"]),
        ("vmlinux.gz", bzimage::gzip(&guest()), ["compressed with gzip", "gzip -d"]),
        ("initrd.cpio", b"070701".repeat(100), ["is a cpio archive", "--initrd"]),
    ] {
        place.0.put(name, bytes);
        place.refuses(MISTAKE, &["boot", "--kernel", name], &[name, words[0], words[1]]);
    }
    place.refuses(MISTAKE, &["boot", "--kernel", "none"], &["none", "No such file"]);
    place.refuses(MISTAKE, &["boot", "--kernel", "."], &["kernel . is a directory"]);
    place.refuses(MISTAKE, &["boot"], &["--kernel"]);
}

fn kernels_that_do_not_unpack_are_refused() {
    const MIB: u32 = 1 << 20;
    let place = Inputs::new();
    let mut code = code::power_off();
    code.extend(noise(200_000));
    let payload = bzimage::gzip(&elf::image(&code));
    let half = payload.len() / 2;
    let mut damaged = payload.clone();
    damaged[half..half + 64].fill(0x55);
    let bomb = bzimage::gzip_of_zeroes(64 << 20);
    assert!(bomb.len() < 1 << 20, "{}", bomb.len());
    for (name, payload, words) in [
        ("cut", bzimage::cut(&payload, half), ["payload is truncated", "in the middle"]),
        ("damaged", damaged, ["gzip payload is damaged", "byte"]),
        ("short", bzimage::claiming(payload.clone(), MIB), ["gzip payload is damaged", "checksum"]),
        ("bomb", bzimage::claiming(bomb.clone(), MIB), ["unpacks to more than the", "1048576"]),
        ("honest-bomb", bomb, ["claims to unpack to 67108864 bytes", "at most"]),
        ("stranger", noise(5000), ["no known compression", "begins with"]),
        ("lzo", b"\x89LZO\0 and so on".repeat(100), ["LZO", "not unpacked here"]),
        ("no-kernel", bzimage::gzip(&noise(5000)), ["packed in the bzImage is no kernel", "ELF"]),
    ] {
        place.0.put(name, bzimage::around(&payload));
        let arguments = ["boot", "--kernel", name, "--memory", "32MiB"];
        place.refuses(MISTAKE, &arguments, &[&format!("{name}: "), words[0], words[1]]);
    }
    // The end of the file is missing, and the header knows it.
    let whole = bzimage::around(&payload);
    place.0.put("tail", &whole[..whole.len() - 5000]);
    place.refuses(MISTAKE, &["boot", "--kernel", "tail"], &["kernel tail", "truncated"]);
}

fn kernels_that_do_not_fit_are_refused() {
    let place = Inputs::new();
    let with = |at: usize, bytes: &[u8]| {
        let mut image = bzimage::kernel(&code::power_off());
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    };
    // init_size, pref_address.
    for (name, bytes) in [
        ("huge", with(0x260, &u32::MAX.to_le_bytes())),
        ("far", with(0x258, &(1_u64 << 40).to_le_bytes())),
        ("wild", with(0x258, &(u64::MAX - 0xfff).to_le_bytes())),
    ] {
        place.0.put(name, bytes);
        let words = [&format!("{name}: ")[..], "the kernel"];
        // No memory would be enough.
        place.refuses(MISTAKE, &["boot", "--kernel", name], &words).never_says(&["more memory"]);
    }
    // Within the bzImage, an ELF file that says it lies where there is no memory.
    let mut elf = elf::image(&code::power_off());
    // The first program header's p_paddr.
    elf[64 + 24..64 + 32].copy_from_slice(&(1_u64 << 32).to_le_bytes());
    place.0.put("elsewhere", bzimage::around(&bzimage::gzip(&elf)));
    place.refuses(MISTAKE, &["boot", "--kernel", "elsewhere"], &["elsewhere: ", "segment", "does not fit"]);
}

/// With just so much address space that a kernel boots whose xz stream asks for little.
fn a_dictionary_that_there_is_no_memory_for_is_an_error() {
    const STEP: u64 = 16 << 20;
    const MOST: u64 = 8 << 30;
    let place = Inputs::new();
    let image = elf::image(&code::power_off());
    for (name, dictionary) in
        [("small", xz::dictionary::SMALL), ("large", xz::dictionary::LARGE), ("huge", xz::dictionary::HUGE)]
    {
        let payload = [xz::stored(&image, dictionary), (image.len() as u32).to_le_bytes().to_vec()].concat();
        place.0.put(name, bzimage::around(&payload));
    }
    let boot = |name: &str, bytes: u64| {
        let arguments = ["boot", "--kernel", name, "--memory", "32MiB"];
        let mut command = program::without_core(program::grouped(place.0.path(), &arguments));
        stand_in::limited(&mut command, Resource::As, bytes);
        let _waiting = harness::waiting(format!("the end of {name} with {bytes} bytes of address space"));
        Ended::from(command.output().unwrap())
    };
    let enough = (STEP..MOST).step_by(STEP as usize).find(|&bytes| boot("small", bytes).status.success());
    let enough = enough.expect("a small kernel boots in some address space");
    boot("large", enough).with(HOST).says(&["large: no memory for 134217728 bytes", "ulimit -v"]);
    // More than any stream gets, with all the memory there is.
    boot("huge", enough).with(MISTAKE).says(&["huge: ", "asks for a dictionary of 1073741824 bytes"]);
    boot("large", MOST).with(0);
}

fn bad_initrds_are_refused() {
    let place = Inputs::new();
    place.0.put("empty", "");
    for (name, why) in [
        ("none", "No such file"),
        (".", "is a directory"),
        ("empty", "is empty"),
        ("/dev/null", "no regular file"),
    ] {
        place.refuses_with(MISTAKE, &["--initrd", name], &[name, "initrd", why]);
    }
}

fn an_initrd_larger_than_memory_is_refused() {
    let place = Inputs::new();
    place.put_sparse("large", 65 << 20);
    let words = ["large: ", "68157440 bytes", "more memory"];
    place.refuses_with(MISTAKE, &["--initrd", "large", "--memory", "64MiB"], &words);
    // More than any machine has.
    place.put_sparse("vast", 1 << 42);
    place.refuses_with(MISTAKE, &["--initrd", "vast", "--memory", "64MiB"], &["vast: ", "more memory"]);
}

fn bad_sizes_are_refused() {
    let place = Inputs::new();
    for size in ["0", "3", "1MiB", "17MiB", "-1", "1XiB", "1e300", "18446744073709551616", ""] {
        place.refuses_with(MISTAKE, &[&format!("--memory={size}")], &["--memory"]);
    }
    // Whole pages, and no host has them.
    for size in ["9223372036854775808", "64TiB"] {
        place.refuses_with(HOST, &["--memory", size], &["--memory", "this host has"]);
    }
    for vcpus in ["0", "33", "-1", "4294967297", "many"] {
        place.refuses_with(MISTAKE, &[&format!("--vcpus={vcpus}")], &["--vcpus"]);
    }
    place.refuses_with(MISTAKE, &["--memory", "64MiB", "--balloon", "65MiB"], &["--balloon", "64 MiB"]);
    place.refuses_with(MISTAKE, &["--balloon", "9223372036854775808"], &["--balloon", "512 MiB"]);
    place.refuses_with(MISTAKE, &["--backing", "straw"], &["--backing", "straw"]);
}

fn bad_disks_are_refused() {
    let place = Inputs::new();
    place.0.put("empty", "");
    place.0.put("short", [0; 1000]);
    for (name, why) in [
        ("none", "No such file"),
        (".", "is a directory"),
        ("empty", "is empty"),
        ("short", "1000 bytes, not a multiple of 512"),
        ("/dev/null", "neither a regular file nor a block device"),
    ] {
        for text in [name.to_owned(), format!("{name}:ro")] {
            place.refuses_with(MISTAKE, &["--disk", &text], &[&format!("the disk {name}"), why]);
        }
    }
    // One bad one among good ones.
    place.0.put("good-disk", [0; 512]);
    place.refuses_with(MISTAKE, &["--disk", "good-disk", "--disk", "short:ro"], &["the disk short", "512"]);
}

fn protected(place: &Inputs) {
    use std::os::unix::fs::PermissionsExt;
    place.0.put("protected", [0; 512]);
    std::fs::set_permissions(place.0.file("protected"), std::fs::Permissions::from_mode(0o444)).unwrap();
}

fn a_disk_that_may_only_be_read_is_refused_for_writing() {
    let place = Inputs::new();
    protected(&place);
    place.refuses_with(MISTAKE, &["--disk", "protected"], &["the disk protected", "cannot be written"]);
}

fn a_read_only_disk_may_be_one_that_may_only_be_read() {
    let place = Inputs::new();
    protected(&place);
    place.run(&["boot", "--kernel", "good", "--disk", "protected:ro"]).with(0);
}

fn bad_command_lines_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let place = Inputs::new();
    let long = "x".repeat(2048);
    place.refuses_with(MISTAKE, &["--cmdline", &long], &["command line has", "takes 2047", "shorten it"]);
    // As long as one argument can be.
    place.refuses_with(MISTAKE, &["--cmdline", &"x".repeat(120_000)], &["command line has", "takes 2047"]);
    // A NUL ends an argument before zapscope could see it; what is no text it does see.
    let mut command = program::grouped(place.0.path(), &["boot", "--kernel", "good", "--cmdline"]);
    command.arg(std::ffi::OsStr::from_bytes(b"quiet \xff\xfe"));
    Ended::from(program::end_of_group(command.spawn().unwrap())).with(MISTAKE).says(&["UTF-8"]);
}

fn a_linux_guest_that_makes_no_sense_is_refused() {
    let place = Inputs::new();
    place.0.put("text", "no kernel at all");
    let before = Swaps::now();
    place.refuses(MISTAKE, &["run", "--kernel", "good"], &["--kernel", "--guest linux"]);
    place.refuses(MISTAKE, &["run", "--guest", "bare", "--kernel", "good"], &["--kernel", "--guest linux"]);
    place.refuses(MISTAKE, &["run", "--modules", "."], &["--modules", "--guest linux"]);
    place.refuses(MISTAKE, &["run", "--guest", "linux"], &["needs a kernel", "--kernel FILE"]);
    for (name, why) in [("none", "No such file"), (".", "is a directory"), ("text", "is no kernel")] {
        let (code, why) = if pvm() { (HOST, "kvm_pvm") } else { (MISTAKE, why) };
        place.refuses(code, &["run", "--guest", "linux", "--kernel", name, "--zram", "64MiB"], &[why]);
    }
    assert_eq!(Swaps::now(), before);
}

fn kvm_pvm_refuses_a_linux_guest_before_it_changes_anything() {
    let place = Inputs::new();
    let before = Swaps::now();
    let arguments = ["run", "--guest", "linux", "--kernel", "good", "--zram", "64MiB"];
    let ended = place.run(&arguments).with(HOST).says(&["kvm_pvm", "--guest bare", "kvm_intel"]);
    // Nothing is made for a run that cannot be.
    assert!(ended.never_says(&["zram"]).out.is_empty());
    assert_eq!(Swaps::now(), before);
    assert!(!place.0.file("zapscope-runs").exists());
}
