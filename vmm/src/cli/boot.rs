//! `zapscope boot`: a Linux kernel to its console.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guest_mem::{Backing, Earned, PAGE_SIZE, PMD_SIZE, PageScanner};
use machine::{Kvm, LinuxLimit};

use super::args::BootArguments;
use super::interrupt::{cancel_on_signal, when_cancelled};
use super::tuned::Wanted;
use devices::terminal::RawMode;
use devices::virtio::block::Disk;
use experiment::choice::Size;
use experiment::events::Ranges;
use host::Root;
use host::kvm_module::KvmFacts;
use host::signals::Cancel;
use linux_boot::initrd::InitrdError;
use linux_boot::{Boot, BootFile, Initrd, Kernel};
use machine::pc::{Ending, Life, Pc, PcConfig, PcError};
use program::exit::{Class, Classified, Exit, Failure};
use program::input::{self, FileKind, Input};
use program::output;
use program::output::Sink;
use program::units;

/// The smallest memory in which a kernel can be placed.
const LEAST_MEMORY: u64 = 16 << 20;

/// The guest cannot be booted.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("the kernel {} {refusal}", path.display())]
    Kernel { path: PathBuf, refusal: linux_boot::Refusal },
    #[error("{}", path.display())]
    Initrd { path: PathBuf, source: InitrdError },
    #[error("{}", path.display())]
    File { path: PathBuf, source: PcError },
    #[error("--memory {0}: it must be a multiple of 2 MiB and at least 16 MiB")]
    Memory(Size),
    #[error("--balloon {balloon}: the guest has {memory} of memory in all")]
    Balloon { balloon: Size, memory: Size },
}

impl Classified for BootError {
    fn class(&self) -> Class {
        match self {
            Self::Kernel { .. } | Self::Memory(_) | Self::Balloon { .. } => Class::Mistake,
            Self::Initrd { source, .. } => source.class(),
            Self::File { source, .. } => source.class(),
        }
    }
}

pub fn boot(arguments: &BootArguments) -> Result<Exit, Failure> {
    match (&arguments.restore.restore, &arguments.kernel) {
        (Some(snapshot), _) => super::restore::restore(snapshot, &arguments.restore, arguments.tune),
        (None, Some(kernel)) => boot_kernel(arguments, kernel),
        (None, None) => unreachable!("clap asks for one of the two"),
    }
}

fn boot_kernel(arguments: &BootArguments, path: &Path) -> Result<Exit, Failure> {
    check_sizes(arguments)?;
    let BootArguments { backing, tune, memory: Size(bytes), .. } = *arguments;
    let wanted = Wanted { backing, bytes, tune };
    wanted.check()?;
    let image = input::read(FileKind::Kernel, path)?;
    identify(path, &image)?;
    let initrd_file =
        arguments.initrd.as_deref().map(|path| Input::open(FileKind::Initrd, path)).transpose()?;
    let initrd = match (&initrd_file, &arguments.initrd) {
        (Some(file), Some(path)) => {
            let refused = |source| BootError::Initrd { path: path.clone(), source };
            Some(Initrd::of_input(file).map_err(refused)?)
        }
        _ => None,
    };
    let disks = arguments.disks.iter().enumerate().map(open_disk).collect::<Result<Vec<_>, _>>()?;
    let kvm = Kvm::open()?;
    let cancel = cancel_on_signal()?;
    let files = Files { path, image, initrd, disks };
    wanted.while_given(|| live(arguments, files, &kvm, cancel))
}

fn identify<'a>(path: &Path, image: &'a [u8]) -> Result<Kernel<'a>, BootError> {
    Kernel::identify(image).map_err(|refusal| BootError::Kernel { path: path.to_owned(), refusal })
}

/// The files of a machine, read or opened before it is made.
struct Files<'a> {
    path: &'a Path,
    image: Vec<u8>,
    initrd: Option<Initrd<'a>>,
    disks: Vec<Disk>,
}

/// Makes the machine, boots it, and waits for its end.
fn live(arguments: &BootArguments, files: Files<'_>, kvm: &Kvm, cancel: Cancel) -> Result<Exit, Failure> {
    let Files { path, image, initrd, disks } = files;
    let kernel = identify(path, &image)?;
    let limit = LinuxLimit::of(&KvmFacts::read_from(&Root::default()));
    let mut cmdline = linux_boot::COMMAND_LINE.to_owned();
    if let Some(limit) = limit {
        output::message(limit.notice);
        cmdline = format!("{cmdline} {}", limit.command_line);
    }
    if !arguments.cmdline.is_empty() {
        cmdline = format!("{cmdline} {}", arguments.cmdline);
    }

    let mut pc = Pc::new(
        kvm,
        &PcConfig {
            vcpus: arguments.vcpus,
            memory: arguments.memory.0,
            backing: arguments.backing,
            arena_node: 0,
            slot_zap_all_quirk: true,
        },
    )?;
    let life = pc.life().clone();
    let serial = pc.add_serial(console(limit, &life))?;
    let input = io::stdin().as_fd().try_clone_to_owned()?;
    let raw = RawMode::enter(io::stdin())?;
    match raw {
        Some(_) => pc.type_to_serial(serial, input),
        None => pc.feed_serial(serial, input),
    }
    disks.into_iter().try_for_each(|disk| pc.add_disk(disk))?;
    let balloon = pc.add_balloon(true)?;
    if let Some(Size(size)) = arguments.balloon {
        let pages = u32::try_from(size / PAGE_SIZE).unwrap_or(u32::MAX);
        balloon.set_target(pages)?;
    }
    // SIGTERM and SIGHUP end the machine, and Ctrl-C unless the terminal passes it to the guest.
    let ended = life.clone();
    when_cancelled(&cancel, move || ended.end(Ending::Stopped))?;
    let in_guest_decompression = arguments.in_guest_decompression;
    pc.boot(&Boot { kernel: &kernel, initrd, cmdline: &cmdline, in_guest_decompression })
        .map_err(|error| named(error, arguments))?;
    drop(image);
    let ending = life.wait();
    let faults: Vec<_> = pc.faults().collect();
    let given_back = pc.give_back().clone();
    let earned = earned(&pc);
    drop(pc);
    drop(raw);
    for (device, fault) in faults {
        output::message(format_args!("the guest's {device} driver broke the rules: {fault}"));
    }
    report_backing(arguments.backing, earned);
    let given = given_back.so_far();
    report("balloon", given.balloon);
    report("free page reports", given.reported);
    Ok(code(&ending))
}

/// Refuses sizes that no guest can have.
fn check_sizes(arguments: &BootArguments) -> Result<(), BootError> {
    let Size(memory) = arguments.memory;
    if memory < LEAST_MEMORY || !memory.is_multiple_of(PMD_SIZE) {
        return Err(BootError::Memory(arguments.memory));
    }
    if let Some(balloon) = arguments.balloon.filter(|balloon| balloon.0 > memory) {
        return Err(BootError::Balloon { balloon, memory: arguments.memory });
    }
    Ok(())
}

/// The error with the name of its file.
fn named(error: PcError, arguments: &BootArguments) -> Failure {
    let path = match &error {
        PcError::Load(source) => match source.file() {
            Some(BootFile::Kernel) => arguments.kernel.as_ref(),
            Some(BootFile::Initrd) => arguments.initrd.as_ref(),
            None => None,
        },
        _ => None,
    };
    match path.cloned() {
        Some(path) => BootError::File { path, source: error }.into(),
        None => error.into(),
    }
}

/// The destination of the guest's console. It ends the guest at the limit.
fn console(limit: Option<LinuxLimit>, life: &Arc<Life>) -> Box<dyn Sink> {
    let Some(limit) = limit else { return Box::new(output::Console) };
    let life = life.clone();
    limit.watch(output::Console, move |why| life.end(Ending::HostLimit(why)))
}

/// `FILE` or `FILE:ro`.
fn open_disk((index, text): (usize, &OsString)) -> Result<Disk, devices::virtio::block::DiskError> {
    let bytes = text.as_bytes();
    let (path, read_only) = match bytes.strip_suffix(b":ro") {
        Some(path) => (path, true),
        None => (bytes, false),
    };
    Disk::open(Path::new(OsStr::from_bytes(path)), read_only, &format!("disk{index}"))
}

/// The part of the guest's memory that has the backing; `None` if it cannot be read.
fn earned(pc: &Pc) -> Option<Earned> {
    let mut scanner = PageScanner::new().ok()?;
    let mut regions = pc.memory().ram().iter().map(|region| Earned::of(&mut scanner, region));
    regions.try_fold(Earned::NOTHING, |all, region| Some(all.and(region.ok()?)))
}

/// Reports the memory's backing, unless all of it has the one that was asked for.
fn report_backing(backing: Backing, earned: Option<Earned>) {
    let said = |earned: &Earned| units::label(&backing.to_string(), earned.fraction());
    if let Some(earned) = earned.filter(|earned| earned.resident > 0 && said(earned) != backing.to_string()) {
        let (bytes, said) = (units::bytes(earned.resident), said(&earned));
        output::message(format_args!("the guest's memory: {bytes} of {said}"));
    }
}

fn report(who: &str, given: Ranges) {
    if given.ranges > 0 {
        output::message(format_args!(
            "{who}: {}, {} given back to the host",
            units::counted(given.ranges, "invalidation"),
            units::bytes(given.bytes)
        ));
    }
}

fn code(ending: &Ending) -> Exit {
    match ending {
        Ending::PowerOff => Exit::Done,
        Ending::Reset => {
            output::message("the guest asked for a reset");
            Exit::Reset
        }
        Ending::HostLimit(why) => {
            output::message(why);
            Exit::Host
        }
        Ending::Stopped => {
            output::hurry();
            Exit::Interrupted
        }
        Ending::Crash(report) => {
            output::message(report);
            Exit::Wrong
        }
        Ending::Device(what) => {
            output::message(what);
            Exit::Fault
        }
    }
}
