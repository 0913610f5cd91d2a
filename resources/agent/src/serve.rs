//! The main thread: takes requests off the port, and watches over everything else.
//!
//! ```text
//!   port ─────── MapArena, Counters ──> done here, answered here
//!      └──────── Order ───────────────> the vCPU's thread, which answers Done itself
//!      └──────── Shell ───────────────> a child; its output and its end arrive here
//!   children ─── SIGCHLD: reap all of them
//!   faults ───── a vCPU's thread died: Failed
//! ```

use std::convert::Infallible;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail, ensure};
use guest_abi::link::{Decoder, FromAgent, MAX_PAYLOAD, Pages, Request, ToAgent, cut};
use guest_abi::order::RawOrder;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::children::Children;
use crate::faults::{self, Faults};
use crate::memory::Space;
use crate::port::Port;
use crate::shell::Shell;
use crate::worker::{self, Worker};
use crate::{counters, quiet};

/// The context of every error in what the VMM sent.
const BROKEN: &str = "the VMM broke the protocol";

/// What the main thread looks after.
pub struct Agent {
    pub port: &'static Port,
    /// One for each vCPU.
    pub workers: Vec<Worker>,
    pub children: Children,
    pub faults: Faults,
    /// The memory, once there is some.
    pub space: Option<Arc<Space>>,
    pub shell: Option<Shell>,
    /// Outputs of processes that a command left behind: they are read and thrown away.
    pub leftovers: Vec<PipeReader>,
}

/// What there may be something to do about, in the order in which it is polled.
#[derive(Default)]
struct Ready {
    faults: bool,
    children: bool,
    port: bool,
    shell: bool,
    leftovers: Vec<bool>,
}

impl Agent {
    /// Serves the VMM until it wants the guest to end.
    pub fn serve(&mut self) -> Result<Infallible> {
        let mut decoder = Decoder::new();
        loop {
            let ready = self.wait()?;
            if ready.faults {
                return self.died();
            }
            if ready.shell
                && let Some(shell) = &mut self.shell
            {
                shell.pass_on(self.port)?;
            }
            if ready.children {
                self.reap()?;
            }
            let mut hears = ready.leftovers.iter();
            self.leftovers.retain_mut(|pipe| !hears.next().is_some_and(|&ready| ready) || discard(pipe));
            if ready.port {
                self.hear(&mut decoder)?;
            }
        }
    }

    fn wait(&self) -> Result<Ready> {
        let shell = self.shell.as_ref().and_then(Shell::output);
        let fixed: [BorrowedFd<'_>; 3] =
            [self.faults.fd().as_fd(), self.children.fd().as_fd(), self.port.as_fd()];
        let leftovers = self.leftovers.iter().map(AsFd::as_fd);
        let all = fixed.into_iter().chain(shell.map(AsFd::as_fd)).chain(leftovers);
        let mut fds: Vec<_> = all.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno).context("poll failed"),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or(false);
        let (faults, children, port) = (next(), next(), next());
        let shell = shell.is_some() && next();
        Ok(Ready { faults, children, port, shell, leftovers: ready.collect() })
    }

    fn hear(&mut self, decoder: &mut Decoder) -> Result<()> {
        let mut buffer = [0; MAX_PAYLOAD];
        let len = self.port.read(&mut buffer).context("the port to the VMM cannot be read")?;
        ensure!(len > 0, "the VMM has closed the port");
        let mut bytes = &buffer[..len];
        while let Some(frame) = decoder.next(&mut bytes).context(BROKEN)? {
            match ToAgent::decode(frame).context(BROKEN)? {
                ToAgent::MapArena { bytes, pages } => match self.map(bytes, pages) {
                    Ok(answer) => self.port.send(&answer)?,
                    Err(error) => self.refuse(Request::MapArena, &error)?,
                },
                ToAgent::Order { vcpu, order } => self.order(vcpu, order).context(BROKEN)?,
                ToAgent::Shell { command } => match self.start(command) {
                    Ok(shell) => self.shell = Some(shell),
                    Err(error) => self.refuse(Request::Shell, &error)?,
                },
                ToAgent::Counters => self.count()?,
            }
        }
        Ok(())
    }

    fn order(&self, vcpu: u16, order: RawOrder) -> Result<()> {
        let worker = self.workers.get(usize::from(vcpu)).ok_or_else(|| worker::no_vcpu(vcpu))?;
        let no_memory = || format!("an order for vCPU {vcpu} before any memory was mapped");
        worker.submit(vcpu, order, self.space.as_ref().with_context(no_memory)?)
    }

    fn refuse(&self, request: Request, error: &Error) -> Result<()> {
        let what = format!("{error:#}");
        self.port.send(&FromAgent::Refused { request, what: cut(&what, MAX_PAYLOAD - 2) })
    }

    fn map(&mut self, bytes: u64, pages: Pages) -> Result<FromAgent<'static>> {
        if let Some(vcpu) = self.workers.iter().position(Worker::is_busy) {
            bail!("vCPU {vcpu} is at work on the memory there is");
        }
        // What there was goes first: the node may not have room for both.
        self.space = None;
        let mut notes = quiet::kernel();
        notes.extend(quiet::allow_huge_pages());
        let space = Space::make(bytes, pages, self.workers.len() as u32)?;
        if !space.node.is_movable() {
            notes.push(format!(
                "node {} is not all ZONE_MOVABLE, so the kernel may allocate from it too: its memory should be hot-pluggable \
                 in the SRAT, and `movable_node` on the command line",
                space.node.id
            ));
        }
        for note in notes.iter().chain(&space.notes) {
            log(self.port, note);
        }
        let mapped = space.mapped()?;
        self.space = Some(Arc::new(space));
        Ok(FromAgent::Mapped(mapped))
    }

    fn count(&self) -> Result<()> {
        let Some(space) = &self.space else {
            let what = "there is no arena yet";
            return self.port.send(&FromAgent::Refused { request: Request::Counters, what });
        };
        match space.moved().and_then(|moved| Ok((moved, space.huge_bytes()?))) {
            Ok((moved_pages, huge_bytes)) => {
                let text = counters::text(space.node);
                let text = cut(&text, MAX_PAYLOAD - 16);
                self.port.send(&FromAgent::CountersAre { moved_pages, huge_bytes, text })
            }
            Err(error) => self.refuse(Request::Counters, &error),
        }
    }

    fn start(&self, command: &str) -> Result<Shell> {
        ensure!(self.shell.is_none(), "a command is running already");
        Shell::start(command)
    }

    fn reap(&mut self) -> Result<()> {
        let shell = self.shell.as_ref().map(Shell::pid);
        let mut ended = None;
        self.children.reap(|pid, status| {
            if shell == Some(pid) {
                ended = Some(status);
            }
        });
        if let Some(status) = ended
            && let Some(shell) = self.shell.take()
        {
            self.leftovers.push(shell.finish(self.port)?);
            self.port.send(&FromAgent::ShellExited { status })?;
        }
        Ok(())
    }

    fn died(&self) -> Result<Infallible> {
        let fault = self.faults.read().context("a vCPU's thread died")?;
        let logical = self.space.as_ref().and_then(|space| space.logical(fault.address));
        let place = logical.map_or("which is no page of the arena or an area".into(), |gpa| {
            format!("where it maps {gpa:#x} as the orders count")
        });
        let (vcpu, signal, address) = (fault.vcpu, faults::name(fault.signal), fault.address);
        bail!("vCPU {vcpu}'s thread got {signal} at {address:#x}, {place}")
    }
}

/// Reads output and throws it away. Returns whether more may come.
fn discard(pipe: &mut PipeReader) -> bool {
    pipe.read(&mut [0; 4096]).is_ok_and(|len| len > 0)
}

/// Tells the VMM something that it can do without.
pub fn log(port: &Port, text: &str) {
    // If it is not told this, the next message that matters fails too.
    let _ = port.send(&FromAgent::Log { text: cut(text, MAX_PAYLOAD) });
}
