//! A PC with a Linux guest in it, whose agent carries out work orders.
//!
//! ```text
//!   kernel file ── identify ─┐
//!   modules ── load order ───┤             Pc ── serial ──> Tail (for reports)
//!   agent ── initramfs ──────┴──> boot ──>    ── balloon ─> BalloonHandle, GiveBack
//!                                             ── port ────> Link ── courier for each vCPU ── Mailbox
//!   Hello ── MapArena ── Mapped: where the memory under test and the control areas lie
//!   lend_arena(backing, granule) ── for each row ──> VmCore
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest_abi::layout::AREA_SIZE;
use guest_abi::link::Pages;
use guest_mem::waits::Thread;
use guest_mem::{Backing, GpaRange, PAGE_SIZE};
use machine::Kvm;

use super::linux_files::{LinuxError, LinuxSetup, archive, console_tail, identify};
use super::{GuestSystem, ShellEnd};
use devices::virtio::balloon::BalloonHandle;
use devices::virtio::block::Disk;
use experiment::events::GivenBack;
use experiment::scenario::GuestPages;
use guest::agent::{AgentError, Link};
use guest::{GuestError, Mailbox};
use host::Root;
use host::kvm_module::KvmFacts;
use linux_boot::{Boot, BootFile, Initrd};
use machine::pc::{ArenaSpec, Ending, Pc, PcConfig, PcError, prefault};
use machine::{FaultCounts, Vcpu, VmCore, VmError};
use program::input::{self, FileKind};
use program::output::Sink;

/// The memory under test comes from a node of its own, and stays where it is.
const ARENA_NODE: &str = "movable_node numa_balancing=disable";
/// More than the memory under test, so that the agent finds one piece of its size; and what a zone keeps back.
const SLACK: u64 = 64 << 20;
/// Linux's memory section: a node ends at a multiple of it.
const SECTION: u64 = 128 << 20;
/// The longest time from the boot to the agent's first message, on a slow host.
const BOOT_PATIENCE: Duration = Duration::from_secs(300);
/// The longest time for any other answer of the agent.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest time without progress of the balloon.
const BALLOON_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the console that are kept for a report.
const TAIL: usize = 2048;

/// The end of what a console printed.
#[derive(Clone, Debug, Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = bytes.len().saturating_sub(TAIL);
        String::from_utf8_lossy(&bytes[from..]).into_owned()
    }
}

impl Sink for Tail {
    fn take(&mut self, more: &[u8]) {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend_from_slice(more);
        if bytes.len() > 2 * TAIL {
            let surplus = bytes.len() - TAIL;
            bytes.drain(..surplus);
        }
    }
}

/// A Linux guest, up.
pub struct LinuxMachine {
    mailboxes: Vec<Arc<Mailbox>>,
    link: Arc<Link>,
    /// One thread for each mailbox; they end when it does.
    couriers: Vec<Thread<()>>,
    pc: Pc,
    balloon: BalloonHandle,
    release: String,
    arena: GpaRange,
}

impl LinuxMachine {
    /// Whether this host can run a Linux guest at all, and this file be its kernel: before anything is changed for it.
    pub fn check(kernel: &Path) -> Result<(), LinuxError> {
        identify(kernel, &image_of(kernel)?).map(drop)
    }

    /// Boots the guest and waits until its agent has the memory under test.
    pub fn start(kvm: &Kvm, setup: &LinuxSetup<'_>) -> Result<Self, LinuxError> {
        let image = image_of(setup.kernel)?;
        let kernel = identify(setup.kernel, &image)?;
        let archive = archive(setup, &kernel)?;
        let areas = u64::from(setup.vcpus) * AREA_SIZE;
        let mut pc = Pc::new(
            kvm,
            &PcConfig {
                vcpus: setup.vcpus,
                memory: setup.guest.memory,
                backing: setup.guest.backing,
                arena_node: (setup.arena + areas + SLACK).next_multiple_of(SECTION),
                slot_zap_all_quirk: setup.slot_zap_all_quirk,
            },
        )?;
        let console = Tail::default();
        let serial = pc.add_serial(Box::new(console.clone()))?;
        // There is no input, but only a port that is fed prints its output.
        let silence = File::open("/dev/null");
        pc.feed_serial(serial, silence.map_err(LinuxError::Silence)?.into());
        let stream = pc.add_agent()?;
        let balloon = pc.add_balloon(setup.guest.free_page_reporting)?;
        if let Some(path) = &setup.guest.disk {
            pc.add_disk(Disk::open(path, true, "tools")?)?;
        }
        let cmdline = [linux_boot::COMMAND_LINE, ARENA_NODE, &setup.guest.cmdline].join(" ");
        let initrd = Some(Initrd::Bytes(&archive));
        pc.boot(&Boot { kernel: &kernel, initrd, cmdline: cmdline.trim(), in_guest_decompression: false })
            .map_err(|error| match error {
                PcError::Load(source) if source.file() == Some(BootFile::Kernel) => {
                    LinuxError::Load { path: setup.kernel.to_owned(), source }
                }
                error => error.into(),
            })?;
        drop(archive);
        Self::meet_agent(pc, stream, balloon, console, setup)
    }

    /// Waits for the agent, has it map the memory under test, and makes a mailbox for each vCPU.
    fn meet_agent(
        pc: Pc,
        stream: UnixStream,
        balloon: BalloonHandle,
        console: Tail,
        setup: &LinuxSetup<'_>,
    ) -> Result<Self, LinuxError> {
        let link = Arc::new(Link::new(stream, PATIENCE, |_| ()).map_err(LinuxError::Thread)?);
        end_with(&pc, &link, console.clone());
        let pages = match setup.guest.pages {
            GuestPages::Huge => Pages::Huge,
            GuestPages::Small => Pages::Small,
        };
        let is_ram = |range| pc.memory().host_parts(range).is_some_and(|parts| parts.len() == 1);
        let up = link
            .wait_hello(BOOT_PATIENCE)
            .and_then(|hello| Ok((hello, link.map_arena(setup.arena, pages, &is_ram)?)));
        let (hello, mapped) = up.map_err(|source| {
            let vcpus = pc.vcpus().iter().filter_map(Vcpu::registers).map(|at| format!("\n{at}")).collect();
            LinuxError::Agent { source, vcpus, console: console.text() }
        })?;
        if mapped.areas.len() != setup.vcpus as usize {
            return Err(LinuxError::Vcpus { wanted: setup.vcpus, online: mapped.areas.len() });
        }
        let (mut mailboxes, mut couriers) = (Vec::new(), Vec::new());
        for (vcpu, &area) in (0..).zip(&mapped.areas) {
            let area = pc.memory().control_area(area).expect("checked when the agent named it");
            let area = area.map_err(PcError::Vm)?;
            let mailbox = Arc::new(Mailbox::new(vcpu, area));
            couriers.push(link.courier(mailbox.clone()).map_err(LinuxError::Thread)?);
            mailboxes.push(mailbox);
        }
        let (release, arena) = (hello.release, mapped.arena);
        Ok(Self { mailboxes, link, couriers, pc, balloon, release, arena })
    }

    /// The kernel's release.
    pub fn release(&self) -> &str {
        &self.release
    }
    /// The vCPUs' mailboxes.
    pub fn mailboxes(&self) -> &[Arc<Mailbox>] {
        &self.mailboxes
    }
    /// The machine.
    pub fn pc(&self) -> &Pc {
        &self.pc
    }
    /// The balloon.
    pub fn balloon(&self) -> &BalloonHandle {
        &self.balloon
    }
    /// Faults so far, all vCPUs together; `None` where KVM does not count them.
    pub fn fault_counts(&self) -> Option<FaultCounts> {
        self.pc.fault_counts()
    }

    /// Whether its guest still runs, and may.
    pub fn is_alive(&self) -> bool {
        self.pc.life().ending().is_none() && self.pc.memory().shared().gate.shut().is_none()
    }

    /// The crash that ended the guest, if the next guest need not meet it: see [`CrashKind::costs_one_row`](guest::CrashKind::costs_one_row).
    pub fn costs_one_row(&self) -> Option<String> {
        match self.pc.life().ending() {
            Some(Ending::Crash(report)) => report.kind.costs_one_row(),
            _ => None,
        }
    }

    /// Puts a fresh arena in place of the memory under test.
    pub fn lend_arena(&self, backing: Backing, granule: u64) -> Result<Arc<VmCore>, VmError> {
        self.pc.memory().lend_arena(ArenaSpec { range: self.arena, backing, granule })
    }

    /// Takes it back. Where KVM refuses, the guest keeps it, or is at its end.
    pub fn take_arena_back(&self) {
        let _ = self.pc.memory().take_arena_back();
    }

    /// Has the secondary MMU map everything but the memory under test, as far as this KVM can.
    pub fn map_own_memory(&self) {
        let memory = self.pc.memory();
        if !memory.take_low_zapped() {
            return;
        }
        let Some(vcpu) = self.pc.vcpus().first() else { return };
        for (node, region) in memory.nodes().iter().zip(memory.ram()) {
            if node.movable {
                continue;
            }
            // Only what is there can be mapped for writing. A host short of memory has what it has.
            let _ = region.populate(region.range());
            let range = node.range;
            // If KVM cannot, faults on the guest's own memory are counted with the others.
            let _ = vcpu.with(move |fd| prefault::map(fd, range));
        }
    }

    fn failed(&self, error: &AgentError) -> GuestError {
        match self.pc.life().ending() {
            Some(ending) => GuestError::System(describe(&ending)),
            None => GuestError::System(guest_mem::with_causes(error)),
        }
    }
}

impl GuestSystem for LinuxMachine {
    fn shell(&self, command: &str) -> Result<ShellEnd, GuestError> {
        let mut output = Vec::new();
        let status = self
            .link
            .shell(command, &mut |bytes| {
                output.extend_from_slice(bytes);
                let surplus = output.len().saturating_sub(TAIL);
                output.drain(..surplus);
            })
            .map_err(|error| self.failed(&error))?;
        let status = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
        Ok(ShellEnd { status, tail: String::from_utf8_lossy(&output).into_owned() })
    }

    fn set_balloon(&self, bytes: u64) -> Result<(), GuestError> {
        let refused = |error: &dyn std::error::Error| GuestError::System(format!("balloon: {error}"));
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        self.balloon.set_target(pages).map_err(|error| refused(&error))?;
        let (mut last, mut since) = (self.balloon.actual(), Instant::now());
        while last != pages {
            if let Some(ending) = self.pc.life().ending() {
                return Err(GuestError::System(describe(&ending)));
            }
            let now = self.balloon.wait_change(last, BALLOON_PATIENCE.saturating_sub(since.elapsed()));
            if now == last {
                let why = format!("the balloon stands at {last} of {pages} pages and moves no more");
                return Err(GuestError::System(why));
            }
            (last, since) = (now, Instant::now());
        }
        match self.balloon.take_error() {
            Some(error) => Err(refused(&error)),
            None => Ok(()),
        }
    }

    fn take_given_back(&self) -> GivenBack {
        self.pc.give_back().take()
    }

    fn counters(&self) -> Result<BTreeMap<String, u64>, GuestError> {
        let counters = self.link.counters().map_err(|error| self.failed(&error))?;
        if counters.moved_pages > 0 {
            let moved = counters.moved_pages;
            return Err(GuestError::System(format!(
                "its kernel has moved {moved} pages of the memory under test"
            )));
        }
        Ok(values(&counters.text))
    }
}

/// Ends the link with the machine, so that a wait for the agent ends too.
fn end_with(pc: &Pc, link: &Arc<Link>, console: Tail) {
    let link = Arc::downgrade(link);
    pc.life().at_end(move |ending| {
        if let Some(link) = link.upgrade() {
            link.end(&format!("{}{}", describe(ending), console_tail(&console.text())));
        }
    });
}

impl std::fmt::Debug for LinuxMachine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("LinuxMachine").field("release", &self.release).finish_non_exhaustive()
    }
}

impl Drop for LinuxMachine {
    fn drop(&mut self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.quit());
        self.link.end("the run is over");
        Thread::end_all_or_tell(std::mem::take(&mut self.couriers));
    }
}

/// The numbers of the lines `name value`, or `name: value kB`, in bytes then.
fn values(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().rev();
        let last = words.next()?;
        let (number, unit) = if last == "kB" { (words.next()?, 1024) } else { (last, 1) };
        let value = number.parse::<u64>().ok()?.checked_mul(unit)?;
        let name: Vec<_> = words.collect::<Vec<_>>().into_iter().rev().collect();
        let name = name.join(" ").trim_end_matches(':').to_owned();
        (!name.is_empty()).then_some((name, value))
    };
    text.lines().filter_map(line).collect()
}

/// The content of a kernel's file, on a host that can run a Linux guest.
fn image_of(kernel: &Path) -> Result<Vec<u8>, LinuxError> {
    if KvmFacts::read_from(&Root::default()).emulates_guest_kernels() {
        return Err(LinuxError::Emulated);
    }
    Ok(input::read(FileKind::Kernel, kernel)?)
}

fn describe(ending: &Ending) -> String {
    match ending {
        Ending::PowerOff => "it switched itself off".to_owned(),
        Ending::Reset => "it asked for a reset".to_owned(),
        Ending::Crash(report) => report.to_string(),
        Ending::Device(what) => what.clone(),
        Ending::HostLimit(why) => (*why).to_owned(),
        Ending::Stopped => "it was stopped".to_owned(),
    }
}
