//! The limit that this host's KVM sets to Linux guests.
//!
//! `kvm_pvm` has no hardware virtualisation: the guest's ring 0 is emulated, its ring 3 runs natively and sees
//! features that CPUID hides. A kernel gets as far as its first process.

use host::kvm_module::KvmFacts;
use program::output::Sink;

/// Hides features that KVM's emulator lacks and Linux would use in ring 0, and spares two calibrations by a real timer.
///
/// User space could use some of them; they are hidden because the kernel's own string, bit and random number routines
/// use an instruction of theirs that the emulator lacks.
const COMMAND_LINE: &str = "clearcpuid=smap,smep,xsave,cx16,fsgsbase,umip,popcnt,rdrand,rdseed,avx,avx2,aes,\
                            pclmulqdq,movbe,bmi1,bmi2,invpcid,pcid,rdtscp,rdpid,abm,adx,clflushopt,clwb noxsave \
                            nopti lpj=5000000 tsc=reliable no_timer_check";

const NOTICE: &str = "this host's KVM is kvm_pvm: it emulates a guest kernel at some million instructions a \
                      second and cannot run a Linux guest's user space. The kernel boots with features hidden by \
                      its command line and with int3 injected, in minutes, up to its first process";

const EXPLANATION: &str = "the kernel has come as far as it can here: it starts its first process, and under \
                           kvm_pvm no system call from there reaches it. To go on use a host with kvm_intel or \
                           kvm_amd; on this one the bare test guest runs everything (`zapscope run`)";

/// How far a Linux guest gets on a host that does not run one to its end.
#[derive(Clone, Copy, Debug)]
pub struct LinuxLimit {
    /// Said before it boots.
    pub notice: &'static str,
    /// Added to its kernel's command line.
    pub command_line: &'static str,
}

impl LinuxLimit {
    /// The limit of a host; `None`: any Linux guest runs.
    pub fn of(kvm: &KvmFacts) -> Option<Self> {
        kvm.emulates_guest_kernels().then_some(Self { notice: NOTICE, command_line: COMMAND_LINE })
    }

    /// A console that passes everything on to `console`, and calls `end` with an explanation once the guest is at the limit.
    pub fn watch(
        self,
        console: impl Sink + 'static,
        end: impl FnOnce(&'static str) + Send + 'static,
    ) -> Box<dyn Sink> {
        Box::new(InitWatch::new(console, move || end(EXPLANATION)))
    }
}

/// What the kernel prints when it starts its first process, around the program's name.
const BEGIN: &[u8] = b"Run ";
const END: &[u8] = b" as init process";
/// A line longer than this is none of those.
const LONGEST: usize = 512;

/// A console that is watched for the line by which the kernel says that it starts its first process.
struct InitWatch<W, F> {
    console: W,
    line: Vec<u8>,
    found: Option<F>,
}

impl<W: Sink, F: FnOnce()> InitWatch<W, F> {
    /// Passes everything on to `console`, and calls `found` after the line.
    fn new(console: W, found: F) -> Self {
        Self { console, line: Vec::new(), found: Some(found) }
    }

    fn look(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LONGEST {
                self.line.push(byte);
            }
            return;
        }
        let begins = self.line.windows(BEGIN.len()).position(|part| part == BEGIN);
        let is_init = begins.is_some_and(|at| self.line[at..].windows(END.len()).any(|part| part == END));
        self.line.clear();
        if is_init && let Some(found) = self.found.take() {
            found();
        }
    }
}

impl<W: Sink, F: FnOnce() + Send> Sink for InitWatch<W, F> {
    fn take(&mut self, bytes: &[u8]) {
        self.console.take(bytes);
        bytes.iter().for_each(|&byte| self.look(byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Passed(Vec<u8>);

    impl Sink for &mut Passed {
        fn take(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
    }

    fn found(text: &[u8], at_a_time: usize) -> bool {
        let (mut passed, mut found) = (Passed::default(), false);
        let mut watch = InitWatch::new(&mut passed, || found = true);
        text.chunks(at_a_time).for_each(|part| watch.take(part));
        drop(watch);
        let Passed(passed) = passed;
        assert_eq!(passed, text);
        found
    }

    #[test]
    fn only_a_host_that_emulates_guest_kernels_has_a_limit() {
        let [shadow, pvm] = KvmFacts::limited();
        assert!(LinuxLimit::of(&shadow).is_none() && LinuxLimit::of(&pvm).is_some());
        assert!(LinuxLimit::of(&KvmFacts::default()).is_none());
    }

    #[test]
    fn the_line_is_found_however_it_arrives() {
        let text = b"[    1.0] Freeing unused memory\r\n[    1.2] Run /init as init process\r\n";
        for at_a_time in 1..text.len() {
            assert!(found(text, at_a_time));
        }
        assert!(!found(&text[..text.len() - 1], 7), "not before its end");
        assert!(!found(b"Run away\n as init process\n", 3));
        assert!(!found(b"Run a program that is not the first\n", 3));
        assert!(!found(&[b'x'; 5000], 1));
        let of_length =
            |length: usize| [BEGIN, &vec![b'x'; length - BEGIN.len() - END.len()], END, b"\n"].concat();
        assert!(found(&of_length(LONGEST), 64));
        assert!(!found(&of_length(LONGEST + 1), 64));
    }
}
