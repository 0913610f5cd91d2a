//! Commands of the VMM's, and what they write.

use std::io::{self, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use guest_abi::link::{FromAgent, MAX_PAYLOAD};

use crate::disk;
use crate::port::Port;

/// A command that runs.
pub struct Shell {
    pid: i32,
    output: PipeReader,
    /// Whether a process still has the pipe's other end.
    open: bool,
}

impl Shell {
    /// Runs `sh -c command`, in the initramfs if that has a shell, else in the first disk.
    pub fn start(command: &str) -> Result<Self> {
        let mut shell = Command::new("/bin/sh");
        if !Path::new("/bin/sh").exists() {
            disk::mount_root()?;
            // SAFETY: between fork and exec, two system calls and nothing else.
            unsafe { shell.pre_exec(enter_disk) };
        }
        Self::spawn(shell, command).context("the shell cannot be started")
    }

    fn spawn(mut shell: Command, command: &str) -> io::Result<Self> {
        let (output, input) = io::pipe()?;
        shell
            .args(["-c", command])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(input.try_clone()?)
            .stdout(input);
        let child = shell.spawn()?;
        let pid = i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(Self { pid, output, open: true })
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Where its output arrives, while it has any.
    pub fn output(&self) -> Option<&PipeReader> {
        self.open.then_some(&self.output)
    }

    /// Passes on some of what has arrived, at least one byte unless there is no more. Returns how much.
    pub fn pass_on(&mut self, port: &Port) -> Result<usize> {
        let mut bytes = [0; MAX_PAYLOAD];
        let len = self.output.read(&mut bytes).unwrap_or(0);
        if len == 0 {
            self.open = false;
        } else {
            port.send(&FromAgent::ShellOutput { bytes: &bytes[..len] })?;
        }
        Ok(len)
    }

    /// Passes on what was written before the command ended. A process that it left behind may write on: the rest
    /// of the pipe is given back.
    pub fn finish(mut self, port: &Port) -> Result<PipeReader> {
        let waiting = rustix::io::ioctl_fionread(&self.output).unwrap_or(0);
        let mut left = usize::try_from(waiting).unwrap_or(usize::MAX);
        while left > 0 && self.open {
            left = left.saturating_sub(self.pass_on(port)?);
        }
        Ok(self.output)
    }
}

fn enter_disk() -> io::Result<()> {
    rustix::process::chroot(c"/disk")?;
    rustix::process::chdir(c"/")?;
    Ok(())
}
