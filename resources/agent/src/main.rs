//! Init of a Linux guest of zapscope's.
//!
//! ```text
//!   mounts ── modules ── the port ── a thread on each vCPU ── Hello ── serve: map, orders, shell, counters
//!       └─────────┴──────────┴─────────────────┴────────────────┴────────┴──> on any error: say why, power off
//! ```
//!
//! It carries out the same work orders as the bare guest, by the same interpreter, on memory that it keeps
//! contiguous in guest physical memory, so that the VMM can tell which page of the guest's is which of its own.
//! The protocol is `guest_abi::link`.

mod children;
mod console;
mod counters;
mod disk;
mod faults;
mod memory;
mod modules;
mod mounts;
mod port;
mod power;
mod quiet;
mod serve;
mod shell;
mod worker;

use std::convert::Infallible;
use std::fs;
use std::process;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use guest_abi::layout::MAX_VCPUS;
use guest_abi::link::{ABI_VERSION, FromAgent, MAX_PAYLOAD, cut};

use children::Children;
use faults::Faults;
use port::Port;
use serve::Agent;
use worker::Worker;

/// How long the VMM may take to connect to the port.
const PATIENCE: Duration = Duration::from_secs(60);

const ONLINE: &str = "/sys/devices/system/cpu/online";

fn main() {
    if process::id() != 1 {
        eprintln!(
            "zapscope-agent is init of a Linux guest that zapscope boots, and does nothing as another process"
        );
        process::exit(2);
    }
    std::panic::set_hook(Box::new(|info| power::fail(&format!("the agent {info}"))));
    let Err(error) = run();
    power::fail(&format!("{error:#}"));
}

fn run() -> Result<Infallible> {
    // Before there is a second thread, which would take the signal.
    let children = Children::watch()?;
    let mut notes = mounts::mount_all()?;
    console::adopt();
    let faults = Faults::install()?;
    notes.extend(modules::load_all());
    for note in &notes {
        console::say(note);
    }
    let port = Port::open()?;
    let cpus = online()?;
    let start = |(vcpu, cpu): (usize, &u32)| Worker::start(vcpu as u16, *cpu, port);
    let workers: Vec<_> = cpus.iter().enumerate().map(start).collect::<Result<_, _>>()?;
    hello(port, workers.len() as u16)?;
    for note in &notes {
        serve::log(port, note);
    }
    Agent { port, workers, children, faults, space: None, shell: None, leftovers: Vec::new() }.serve()
}

/// The CPUs, one for each vCPU.
fn online() -> Result<Vec<u32>> {
    let cpus = memory::parse_list(&fs::read_to_string(ONLINE)?);
    if cpus.is_empty() || cpus.len() > MAX_VCPUS as usize {
        bail!("{ONLINE} names {} CPUs; 1 to {MAX_VCPUS} can be used", cpus.len());
    }
    Ok(cpus)
}

/// Says Hello, for which the VMM must be there: the kernel makes a writer wait for it.
fn hello(port: &'static Port, vcpus: u16) -> Result<()> {
    let (said, hear) = mpsc::channel();
    thread::Builder::new().spawn(move || {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy();
        let release = cut(&release, MAX_PAYLOAD - 6);
        let _ = said.send(port.send(&FromAgent::Hello { abi: ABI_VERSION, vcpus, release }));
    })?;
    match hear.recv_timeout(PATIENCE) {
        Ok(sent) => sent,
        Err(_) => bail!("the VMM did not connect to the port within {} s", PATIENCE.as_secs()),
    }
}
