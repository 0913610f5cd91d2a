//! The arguments of the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use guest_mem::{Backing, HvaRange};
use notifier_bridge::Policy;
use swap::FaultAround;

use experiment::choice::{ByteRange, PolicyChoice, Size, TimeSpan};
use lab::TapChoice;
use program::exit::CODES;

/// What does it cost a guest when the host takes its memory away?
#[derive(Debug, Parser)]
#[command(name = "zapscope", version, max_term_width = 100, after_help = CODES)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What zapscope does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a scenario, print its table, write a run directory.
    Run(RunArguments),
    /// Put a run's victims through other range policies, without a guest.
    Replay(ReplayArguments),
    /// Say where the time of a run went, host and guest on one clock.
    Timeline(TimelineArguments),
    /// Boot a Linux kernel to its console, or the bare guest from a snapshot.
    Boot(BootArguments),
    /// Have the bare guest fill its memory, and put it into a file.
    Snapshot(SnapshotArguments),
    /// Watch the invalidations of a VM that some other VMM runs.
    Attach(AttachArguments),
    /// Say what this host can and cannot measure, and the command that would change it.
    Doctor(DoctorArguments),
}

/// `zapscope run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// A built-in scenario's name, or a TOML file.
    #[arg(default_value = "swapout")]
    pub scenario: PathBuf,
    /// Make a zram swap device of this size for the run, and take it away again.
    #[arg(long, value_name = "SIZE")]
    pub zram: Option<Size>,
    /// Set the host's huge-page switches as each row's backing needs them (mthp, thp, memfd:thp, the pool of hugetlb), and
    /// put them back.
    #[arg(long)]
    pub tune: bool,
    /// Who accesses the memory.
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto)]
    pub backend: BackendChoice,
    /// Use the memory from a Linux guest, or from the bare test guest, whatever the scenario says.
    #[arg(long, value_enum)]
    pub guest: Option<GuestChoice>,
    /// The Linux guest's kernel: a bzImage or an ELF vmlinux.
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The kernel's modules [default: lib/modules beside the kernel, or /lib/modules/RELEASE].
    #[arg(long, value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// How the kernel's own account of the announced ranges is kept: by a BPF program, by perf events, by the first of
    /// them that this host permits, or not at all.
    #[arg(long, value_enum, default_value_t = TapChoice::Auto)]
    pub tap: TapChoice,
    /// Print the run record on standard output, everything else on standard error.
    #[arg(long)]
    pub json: bool,
    /// How results are printed on standard output.
    #[arg(long, value_enum, default_value_t = Format::Text, conflicts_with = "json")]
    pub format: Format,
    /// Where the run directory goes.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `zapscope replay`.
#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// The directory of a run, or the run.json in it.
    pub run: PathBuf,
    /// The policies, by their names in a scenario.
    #[arg(
        long,
        value_name = "POLICY",
        value_delimiter = ',',
        default_values_t = Policy::ALL.iter().map(|&policy| PolicyChoice::Announced(policy))
    )]
    pub policy: Vec<PolicyChoice>,
    /// Bytes of a memslot, in place of what the run had.
    #[arg(long, value_name = "SIZE")]
    pub granule: Option<Size>,
    /// Print the predicted run record on standard output, everything else on standard error.
    #[arg(long, conflicts_with = "validate")]
    pub json: bool,
    /// Run a sample of the predicted rows, and print predicted against measured.
    #[arg(long)]
    pub validate: bool,
    /// With --validate: make a zram swap device of this size for it, and take it away again.
    #[arg(long, value_name = "SIZE", requires = "validate")]
    pub zram: Option<Size>,
    /// With --validate: set the host's huge-page switches as each row's backing needs them, and put them back.
    #[arg(long, requires = "validate")]
    pub tune: bool,
    /// With --validate: who accesses the memory.
    #[arg(long, value_enum, default_value_t = BackendChoice::Auto, requires = "validate")]
    pub backend: BackendChoice,
    /// With --validate: how the comparison is printed on standard output.
    #[arg(long, value_enum, default_value_t = Format::Text, requires = "validate")]
    pub format: Format,
}

/// `zapscope timeline`.
#[derive(Debug, Args)]
pub struct TimelineArguments {
    /// The directory of a run, or the run.json in it.
    pub run: PathBuf,
    /// The sums as JSON on standard output instead of the tables.
    #[arg(long)]
    pub json: bool,
    /// Write every event as well, for a trace viewer: Perfetto, or chrome://tracing.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// `zapscope boot`.
///
/// Ends with 0 when the guest switches itself off, with 4 when it asks for a reset (so does a kernel that panicked),
/// with 1 when it crashes, with 2 if the command line or a file is not as it should be, with 3 where this host cannot run
/// it, or no further, with 130 on Ctrl-A x or a signal.
#[derive(Debug, Args)]
pub struct BootArguments {
    /// The kernel: a bzImage or an ELF vmlinux.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["restore", "fault_around", "handlers", "eager", "json"])]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line, after `console=ttyS0 panic=-1`.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub cmdline: String,
    /// The guest's memory.
    #[arg(long, value_name = "SIZE", default_value = "512MiB")]
    pub memory: Size,
    /// What fills it: 4k, thp, mthp:SIZE, memfd, memfd:thp, hugetlb:2m.
    #[arg(long, value_name = "BACKING", default_value = "4k")]
    pub backing: Backing,
    /// vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub vcpus: u32,
    /// A raw disk image or block device; with `:ro` after it, read-only. May be given several times.
    #[arg(long = "disk", value_name = "FILE[:ro]")]
    pub disks: Vec<OsString>,
    /// Give the guest a balloon, and have it inflate to this size.
    #[arg(long, value_name = "SIZE")]
    pub balloon: Option<Size>,
    /// Have the guest unpack its kernel, as firmware would. Slow where the guest kernel is emulated.
    #[arg(long)]
    pub in_guest_decompression: bool,
    /// Set the host's huge-page switches as the guest's backing needs them, and put them back.
    #[arg(long)]
    pub tune: bool,
    /// Instead of a kernel.
    #[command(flatten)]
    pub restore: RestoreArguments,
}

/// `zapscope boot --restore`.
#[derive(Debug, Args)]
pub struct RestoreArguments {
    /// Start the bare guest from a snapshot at once: each page comes at its first fault, through userfaultfd. It verifies
    /// its memory, writes to it, verifies it again, and what that cost is printed.
    #[arg(long, value_name = "FILE", conflicts_with_all = [
        "kernel", "initrd", "cmdline", "memory", "backing", "vcpus", "disks", "balloon", "in_guest_decompression",
    ])]
    pub restore: Option<PathBuf>,
    /// How much one fault brings: 4KiB to 2MiB, or adaptive.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "adaptive",
        requires = "restore",
        conflicts_with = "kernel"
    )]
    pub fault_around: FaultAround,
    /// Threads that serve faults [default: one for each vCPU].
    #[arg(long, value_name = "N", requires = "restore", conflicts_with = "kernel", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub handlers: Option<u32>,
    /// Read everything before the start, without userfaultfd.
    #[arg(long, requires = "restore", conflicts_with_all = ["kernel", "fault_around", "handlers"])]
    pub eager: bool,
    /// Print the figures as JSON.
    #[arg(long, requires = "restore", conflicts_with = "kernel")]
    pub json: bool,
}

/// `zapscope snapshot`.
#[derive(Debug, Args)]
pub struct SnapshotArguments {
    /// Where the snapshot goes. What is there under that name stays until it is whole.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The guest's memory under test.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub memory: Size,
    /// How much of it the guest fills; the rest stays zeros [default: all].
    #[arg(long, value_name = "SIZE")]
    pub fill: Option<Size>,
    /// What fills it: 4k, thp, mthp:SIZE, memfd, memfd:thp, hugetlb:2m.
    #[arg(long, value_name = "BACKING", default_value = "4k")]
    pub backing: Backing,
    /// vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub vcpus: u32,
    /// Set the host's huge-page switches as the guest's backing needs them, and put them back.
    #[arg(long)]
    pub tune: bool,
}

/// `zapscope attach`.
///
/// Ends with 0 when its time is over or it is told to stop (Ctrl-C), with 1 if the process ends meanwhile, with 2 if it has
/// no VM, with 3 if we may not look at it.
#[derive(Debug, Args)]
pub struct AttachArguments {
    /// The process that holds the VM.
    #[arg(long, value_name = "PID")]
    pub pid: u32,
    /// Watch for so long [default: until Ctrl-C].
    #[arg(long = "for", value_name = "TIME")]
    pub length: Option<TimeSpan>,
    /// Say so often what was seen.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = longer_than_nothing)]
    pub every: TimeSpan,
    /// Watch these addresses of the process, as in /proc/PID/maps, in place of what looks like a guest's memory. May be
    /// given several times.
    #[arg(long, value_name = "START-END", value_parser = super::ranges::addresses)]
    pub memory: Vec<HvaRange>,
    /// Page out this range of the guest's largest mapping, from its beginning: 0..64MiB. Nothing else is ever done to it.
    #[arg(long, value_name = "RANGE", value_parser = super::ranges::pages)]
    pub pageout: Option<ByteRange>,
    /// Print the record on standard output, everything else on standard error.
    #[arg(long)]
    pub json: bool,
    /// Where the record goes.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `zapscope doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
    /// How the findings are printed on standard output.
    #[arg(long, value_enum, default_value_t = Format::Text, conflicts_with = "json")]
    pub format: Format,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For the tools of kernel tests: KTAP version 1; what is for people goes to standard error.
    Ktap,
}

/// Who uses the memory in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuestChoice {
    /// The test guest.
    Bare,
    /// An agent under a Linux kernel; give `--kernel` too.
    Linux,
}

/// Who accesses the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// A guest under KVM where /dev/kvm opens, else the software MMU.
    Auto,
    /// A guest under KVM.
    Kvm,
    /// Worker threads on the software MMU.
    Soft,
}

/// A duration other than 0.
fn longer_than_nothing(text: &str) -> Result<TimeSpan, String> {
    match text.parse::<TimeSpan>() {
        Ok(span) if span.0.is_zero() => Err(format!("`{text}` is no time at all: write for example \"1s\"")),
        Ok(span) => Ok(span),
        Err(error) => Err(error.to_string()),
    }
}
