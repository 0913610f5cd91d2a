//! Other zapscope runs on this host. Two of them reclaim from the same memory and disturb each other's times.
//!
//! Each run binds a datagram socket named `@zapscope-run-<PID namespace>-<pid>` in the abstract namespace. The kernel frees
//! the name when the process ends. A starting run reads the names in `/proc/net/unix` and sends its own name to each, so
//! that both runs know of each other, whichever started first. Runs in another network namespace are not found.
//!
//! A lock on a file does not do the same: the earlier run must learn of one that starts and ends within it, a run without
//! privileges has no directory in common with one of root, and files are left behind by SIGKILL.

use std::collections::BTreeSet;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::Root;
use crate::pid_namespace::pid_namespace;

const PREFIX: &str = "zapscope-run-";

/// The socket of this run cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the socket by which other zapscope runs would notice this one (results may be disturbed unseen)"
)]
pub struct NeighbourError(#[source] io::Error);

/// The identity of a run: its PID namespace, and its PID there. In another namespace the same PID is another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// The inode of its PID namespace.
    namespace: u64,
    /// Its PID there.
    pid: u32,
}

impl Run {
    fn this() -> Self {
        Self { namespace: pid_namespace(), pid: std::process::id() }
    }

    fn name(self, prefix: &str) -> String {
        format!("{prefix}{}-{}", self.namespace, self.pid)
    }

    fn parse(name: &str, prefix: &str) -> Option<Self> {
        let (namespace, pid) = name.strip_prefix(prefix)?.split_once('-')?;
        Some(Self { namespace: namespace.parse().ok()?, pid: pid.parse().ok()? })
    }

    /// The run's name for a user in the PID namespace `here`.
    fn describe(self, here: u64) -> String {
        match self.namespace == here {
            true => format!("pid {}", self.pid),
            false => format!("pid {} of another PID namespace, as a container has", self.pid),
        }
    }
}

/// This run among the others.
#[derive(Debug)]
pub struct Neighbours {
    socket: UnixDatagram,
    prefix: String,
    own: Run,
    seen: BTreeSet<Run>,
}

impl Neighbours {
    /// Binds the socket, and sends its name to the runs that are there.
    pub fn join() -> Result<Self, NeighbourError> {
        Self::join_as(PREFIX, Run::this(), live_sockets)
    }

    fn join_as(prefix: &str, own: Run, list: impl FnOnce() -> String) -> Result<Self, NeighbourError> {
        let address = SocketAddr::from_abstract_name(own.name(prefix)).map_err(NeighbourError)?;
        let socket = UnixDatagram::bind_addr(&address).map_err(NeighbourError)?;
        socket.set_nonblocking(true).map_err(NeighbourError)?;
        let mut neighbours = Self { socket, prefix: prefix.to_owned(), own, seen: BTreeSet::new() };
        // After the bind: of two runs that start at once, each finds the other.
        for run in parse_runs(&list(), prefix) {
            neighbours.greet(run);
        }
        Ok(neighbours)
    }

    /// Every other run that was alive at any time during this one, so far.
    pub fn neighbours_seen(&mut self) -> &BTreeSet<Run> {
        let mut bytes = [0u8; 64];
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let greeting = std::str::from_utf8(&bytes[..length]).ok();
            let run = greeting.and_then(|text| Run::parse(text, &self.prefix));
            self.seen.extend(run.filter(|run| *run != self.own));
        }
        &self.seen
    }

    /// The warning for the run record, if there was another run.
    pub fn warning(&mut self) -> Option<String> {
        let here = self.own.namespace;
        let runs: Vec<_> = self.neighbours_seen().iter().map(|run| run.describe(here)).collect();
        (!runs.is_empty()).then(|| {
            format!(
                "another zapscope ran at the same time ({}), each disturbs the other's times, and what one takes to swap may \
                 lie on the other's device and come back when that ends: run one after the other",
                runs.join(", ")
            )
        })
    }

    fn greet(&mut self, run: Run) {
        if run == self.own {
            return;
        }
        let Ok(address) = SocketAddr::from_abstract_name(run.name(&self.prefix)) else { return };
        match self.socket.send_to_addr(self.own.name(&self.prefix).as_bytes(), &address) {
            // It has ended since it was listed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            // Sent; or its queue is full, and it is alive.
            _ => {
                self.seen.insert(run);
            }
        }
    }
}

fn live_sockets() -> String {
    Root::default().text("/proc/net/unix").unwrap_or_default()
}

/// The runs among the names of `/proc/net/unix`, where `@` marks the abstract namespace.
fn parse_runs(sockets: &str, prefix: &str) -> BTreeSet<Run> {
    let name_of = |line: &str| line.split_whitespace().nth(7)?.strip_prefix('@').map(str::to_owned);
    sockets.lines().filter_map(name_of).filter_map(|name| Run::parse(&name, prefix)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    const LIST: &str = "Num       RefCount Protocol Flags    Type St Inode Path\n\
        0000000000000000: 00000002 00000000 00000000 0002 01 17013 @zapscope-run-7-4711\n\
        0000000000000000: 00000003 00000000 00000000 0001 03 17014\n\
        0000000000000000: 00000002 00000000 00010000 0001 01 17015 /run/zapscope-run-7-12\n\
        0000000000000000: 00000002 00000000 00000000 0002 01 17016 @zapscope-run-7-x\n\
        0000000000000000: 00000002 00000000 00000000 0002 01 17017 @zapscope-run-9-8\n";

    fn run(pid: u32) -> Run {
        Run { namespace: 7, pid }
    }

    #[test]
    fn runs_are_found_by_name() {
        assert_eq!(parse_runs(LIST, PREFIX), BTreeSet::from([run(4711), Run { namespace: 9, pid: 8 }]));
        assert_eq!(parse_runs("", PREFIX), BTreeSet::new());
    }

    /// A prefix of one test, so that real runs on this host are not found.
    fn prefix(test: &str) -> String {
        format!("zapscope-test-{}-{test}-", std::process::id())
    }

    #[test]
    fn both_learn_of_each_other() {
        let prefix = prefix("both");
        let mut first = Neighbours::join_as(&prefix, run(1), live_sockets).unwrap();
        assert_eq!(first.warning(), None, "no other run is there");
        let mut second = Neighbours::join_as(&prefix, run(2), live_sockets).unwrap();
        assert_eq!(first.neighbours_seen(), &BTreeSet::from([run(2)]));
        assert_eq!(second.neighbours_seen(), &BTreeSet::from([run(1)]));
        drop(second);
        assert!(first.warning().unwrap().contains("(pid 2)"), "a run that has ended was there all the same");
        let mut third = Neighbours::join_as(&prefix, run(3), live_sockets).unwrap();
        assert_eq!(
            third.neighbours_seen(),
            &BTreeSet::from([run(1)]),
            "a run that ended before is not found"
        );
    }

    #[test]
    fn a_pid_of_another_namespace_is_marked() {
        let prefix = prefix("namespaces");
        let mut here = Neighbours::join_as(&prefix, run(1), live_sockets).unwrap();
        // Another process has the same PID in its own namespace.
        let mut there = Neighbours::join_as(&prefix, Run { namespace: 8, pid: 1 }, live_sockets).unwrap();
        for warning in [here.warning().unwrap(), there.warning().unwrap()] {
            assert!(warning.contains("(pid 1 of another PID namespace"), "{warning}");
        }
    }

    #[test]
    fn a_run_that_ended_after_it_was_listed_is_not_reported() {
        let prefix = prefix("stale");
        let list = format!("head\n0: 2 0 0 0002 01 17013 @{prefix}7-77\n");
        let mut run = Neighbours::join_as(&prefix, run(1), || list).unwrap();
        assert!(run.neighbours_seen().is_empty());
    }

    #[test]
    fn other_datagrams_are_ignored() {
        let prefix = prefix("noise");
        let mut run = Neighbours::join_as(&prefix, run(1), String::new).unwrap();
        let stranger = UnixDatagram::unbound().unwrap();
        let address = SocketAddr::from_abstract_name(format!("{prefix}7-1")).unwrap();
        for noise in ["", "hello", "zapscope", &format!("{prefix}none")] {
            stranger.send_to_addr(noise.as_bytes(), &address).unwrap();
        }
        stranger.send_to_addr(&[0xff; 200], &address).unwrap();
        assert!(run.neighbours_seen().is_empty());
    }

    const CHILD_PREFIX: &str = "ZAPSCOPE_TEST_NEIGHBOUR";

    /// Not a test: the other process of the next test.
    #[test]
    fn not_a_test_but_a_neighbour() {
        let Ok(prefix) = std::env::var(CHILD_PREFIX) else { return };
        let _run = Neighbours::join_as(&prefix, Run::this(), live_sockets).unwrap();
        program::output::result("\njoined\n");
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    #[test]
    fn a_killed_process_frees_its_name() {
        let prefix = prefix("process");
        let mut run = Neighbours::join_as(&prefix, run(1), live_sockets).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "neighbours::tests::not_a_test_but_a_neighbour", "--nocapture"])
            .env(CHILD_PREFIX, &prefix)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        assert!(stdout.lines().any(|line| line.unwrap() == "joined"));
        assert_eq!(run.neighbours_seen(), &BTreeSet::from([Run { pid: child.id(), ..Run::this() }]));
        assert!(parse_runs(&live_sockets(), &prefix).iter().any(|run| run.pid == child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!parse_runs(&live_sockets(), &prefix).iter().any(|run| run.pid == child.id()));
    }
}
