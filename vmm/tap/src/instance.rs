//! A private tracefs instance as a source: buffers of its own for each CPU, read page by page.
//!
//! ```text
//!   instances/zapscope-PID-N ── events/…/filter, enable ── per_cpu/cpuN/trace_pipe_raw ── pages ── records
//!                                                          per_cpu/cpuN/stats ── overrun, dropped: what was lost
//! ```
//!
//! Whoever makes the instance removes it again: it is a change to the host ([`host::HostChanges`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest_mem::HvaRange;
use rustix::io::Errno;

use super::filter;
use super::format::FormatError;
use super::hit::Sample;
use super::page::PageLayout;
use super::perf::ring_size;
use super::source::{Heard, Source, SourceError, StreamError};
use super::tracepoints::Layout;
use host::tracefs::{Tracefs, TracefsError};
use host::{in_initial_pid_namespace, tracefs};

/// The largest sub-buffer that is read.
const LARGEST_PAGE: usize = 1 << 18;
/// The most CPUs that are looked for.
const MOST_CPUS: u32 = 1 << 16;

/// Why an instance cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// One of its files cannot be used.
    #[error(transparent)]
    Tracefs(#[from] TracefsError),
    /// Its buffers are of a kind that is not known.
    #[error("the trace buffers of this kernel are of a kind that zapscope cannot read")]
    Buffers(#[from] FormatError),
    /// Threads have other numbers here than in the trace.
    #[error(
        "a tracefs instance numbers threads as the initial PID namespace does, and this is another: use perf \
         (`--tap perf`), or run outside the container"
    )]
    Namespace,
}

/// Buffers of all CPUs.
#[derive(Debug)]
pub struct Instance {
    directory: Tracefs,
    layout: PageLayout,
    /// To find the thread in a record.
    events: Layout,
    cpus: Vec<(u32, OwnedFd)>,
    page: Vec<u8>,
}

impl Instance {
    /// Listens in the instance `name` to all that `layout` lists, ranges only where they meet `watched`.
    ///
    /// # Errors
    /// [`InstanceError`].
    pub fn open(
        tracefs: &Tracefs,
        name: &str,
        layout: &Layout,
        watched: &[HvaRange],
    ) -> Result<Self, InstanceError> {
        if !in_initial_pid_namespace() {
            return Err(InstanceError::Namespace);
        }
        let page_layout =
            PageLayout::parse(&tracefs.read("events/header_page")?, &tracefs.read("events/header_event")?)?;
        let directory = tracefs.directory(&tracefs::instance(name))?;
        directory.write("tracing_on", "0")?;
        directory.write("trace_clock", "mono")?;
        let cpus = streams(&directory)?;
        // A range takes 28 bytes: as with perf, one wakes the reader after tens of thousands.
        directory.write("buffer_size_kb", &(ring_size(cpus.len()) >> 10).to_string())?;
        // The names of threads are looked up when they are heard of; noting them is work at each switch of all of them.
        directory.write("trace_options", "norecord-cmd")?;
        // Of whoever used it before, records and losses.
        directory.write("trace", "\n")?;
        // What finds no room is dropped and counted: a reader in the middle of a page keeps it.
        directory.write("options/overwrite", "0")?;
        for listened in layout.listened() {
            if let Some(text) = filter::text(&listened.filtered, watched) {
                directory.write(&format!("events/{}/filter", listened.path), &text)?;
            }
            directory.write(&format!("events/{}/enable", listened.path), "1")?;
        }
        directory.write("tracing_on", "1")?;
        let page = vec![0; page_size(&directory)];
        Ok(Self { directory, layout: page_layout, events: layout.clone(), cpus, page })
    }
}

fn streams(directory: &Tracefs) -> Result<Vec<(u32, OwnedFd)>, TracefsError> {
    let mut streams = Vec::new();
    for cpu in 0..MOST_CPUS {
        match directory.stream(&format!("per_cpu/cpu{cpu}/trace_pipe_raw")) {
            Ok(stream) => streams.push((cpu, stream)),
            Err(error) if error.source == Errno::NOENT && cpu > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(streams)
}

/// Sub-buffers have a page, unless somebody chose otherwise (from 6.8 on).
fn page_size(directory: &Tracefs) -> usize {
    let said =
        directory.read("buffer_subbuf_size_kb").ok().and_then(|text| text.trim().parse::<usize>().ok());
    said.and_then(|kib| kib.checked_mul(1024))
        .filter(|size| (4096..=LARGEST_PAGE).contains(size))
        .unwrap_or(4096)
}

impl Source for Instance {
    /// Readable when half of a buffer is full: `buffer_percent` is 50 unless somebody writes to it.
    fn wakes(&self) -> Vec<BorrowedFd<'_>> {
        self.cpus.iter().map(|(_, stream)| stream.as_fd()).collect()
    }

    fn drain(&mut self, sink: &mut dyn FnMut(Heard<'_>)) -> Result<(), SourceError> {
        let (layout, events, page) = (&self.layout, &self.events, &mut self.page);
        for (_, stream) in &self.cpus {
            loop {
                let length = match rustix::io::read(stream, &mut *page) {
                    Ok(0) | Err(Errno::AGAIN) => break,
                    Ok(length) => length,
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(StreamError::Read(errno).into()),
                };
                let read = layout.records(&page[..length], |time_ns, raw| {
                    let tid = events.thread(raw).unwrap_or(0);
                    sink(Heard::Sample(Sample { time_ns, pid: 0, tid, raw }));
                });
                read.map_err(StreamError::Page)?;
            }
        }
        Ok(())
    }

    fn lost(&mut self) -> u64 {
        let of = |cpu: &u32| {
            self.directory.read(&format!("per_cpu/cpu{cpu}/stats")).map_or(0, |text| lost_in(&text))
        };
        self.cpus.iter().map(|(cpu, _)| of(cpu)).sum()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The instance itself its maker removes; until then nobody shall pay for it.
        for listened in self.events.listened() {
            let _ = self.directory.write(&format!("events/{}/enable", listened.path), "0");
        }
    }
}

/// What a CPU's `stats` say was lost.
fn lost_in(stats: &str) -> u64 {
    let numbers = stats.lines().filter_map(|line| {
        let (name, number) = line.split_once(':')?;
        matches!(name, "overrun" | "commit overrun" | "dropped events")
            .then(|| number.trim().parse::<u64>().ok())?
    });
    numbers.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_was_lost_is_summed() {
        let stats = "entries: 7\noverrun: 3\ncommit overrun: 0\nbytes: 9\noldest event ts: 12.5\n\
            now ts: 13.5\ndropped events: 39\nread events: 2\n";
        assert_eq!(lost_in(stats), 42);
        assert_eq!(lost_in(""), 0);
    }
}
