//! The virtio-console port to the VMM.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_abi::link::{FromAgent, HEADER_BYTES, MAX_PAYLOAD, PORT_NAME};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, recv, socket_with};

const PORTS: &str = "/sys/class/virtio-ports";

/// How long the port may take to appear once all modules are loaded.
const PATIENCE: Duration = Duration::from_secs(30);

static OPENED: OnceLock<Port> = OnceLock::new();

/// The port, open.
pub struct Port {
    file: File,
    /// Held while one frame is written.
    writing: Mutex<()>,
}

impl Port {
    /// The port, if it was opened.
    pub fn opened() -> Option<&'static Self> {
        OPENED.get()
    }

    /// Waits for the port and opens it.
    pub fn open() -> Result<&'static Self> {
        let name = find()?;
        let path = format!("/dev/{name}");
        let file = File::options().read(true).write(true).open(&path);
        let file = file.with_context(|| format!("the port {PORT_NAME} is {path}, which cannot be opened"))?;
        Ok(OPENED.get_or_init(|| Self { file, writing: Mutex::new(()) }))
    }

    /// Sends one message. Waits until the VMM has room for it.
    ///
    /// # Errors
    /// The message is too long, or the VMM is gone.
    pub fn send(&self, message: &FromAgent<'_>) -> Result<()> {
        let mut buffer = [0; HEADER_BYTES + MAX_PAYLOAD];
        let frame = message.encode(&mut buffer)?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.file).write_all(frame).context("the port to the VMM cannot be written")
    }

    /// Reads what has arrived; nothing if the VMM has closed its side.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The port's device, once it is there.
fn find() -> Result<String> {
    // Before the first look, so that nothing is missed between that and the wait.
    let uevents = uevents();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ports = ports();
        if let Some((device, _)) = ports.iter().find(|(_, name)| name == PORT_NAME) {
            return Ok(device.clone());
        }
        let socket = uevents.as_ref().map_err(|&errno| errno).with_context(|| {
            format!(
                "the kernel has no uevents (CONFIG_NET) to wait with for the port {PORT_NAME}, and it is not there yet"
            )
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout)) == Ok(0) {
            let found: Vec<_> = ports.iter().map(|(device, name)| format!("{device} \"{name}\"")).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            bail!(
                "this is init of a guest of zapscope, and takes its orders over a virtio-console port named \
                 {PORT_NAME}; there was none after {} s (ports: {found})",
                PATIENCE.as_secs()
            );
        }
        // What it says does not matter, only that something changed; too many at once count as one.
        let _ = recv(socket, &mut [0; 4096], RecvFlags::DONTWAIT);
    }
}

fn uevents() -> Result<rustix::fd::OwnedFd, Errno> {
    let protocol = Some(netlink::KOBJECT_UEVENT);
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, protocol)?;
    // Group 1 is the kernel's own events.
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

/// Device and name of every port.
fn ports() -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir(PORTS) else { return Vec::new() };
    let port = |path: PathBuf| {
        let name = fs::read_to_string(path.join("name")).unwrap_or_default();
        Some((path.file_name()?.to_str()?.to_owned(), name.trim().to_owned()))
    };
    entries.flatten().filter_map(|entry| port(entry.path())).collect()
}
