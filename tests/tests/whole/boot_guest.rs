//! `zapscope boot` with kernels of a few instructions: every way a guest can end, and its console both ways.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::host::emulated;
use tests::{bzimage, code, elf, program};

use crate::way_out::host;

crate::tests! {
    a_guest_says_a_line_and_switches_itself_off: [Kvm],
    an_elf_kernel_begins_at_its_pvh_entry: [Kvm],
    a_guest_that_resets_ends_with_4: [Kvm],
    a_guest_that_crashes_ends_with_its_registers: [Kvm],
    a_signal_ends_a_guest_that_never_would: [Kvm],
    nothing_is_lost_between_two_pipes: [Kvm],
    a_console_that_nobody_reads_stops_no_guest: [Kvm],
    input_that_has_ended_costs_no_time: [Kvm],
}

const LINE: &str = "hello from 64-bit mode\n";
/// How long a process may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Code that says [`LINE`], and then does `rest`.
fn hello(rest: Vec<u8>) -> Vec<u8> {
    [code::say(LINE), rest].concat()
}

/// `boot` of this kernel file, with more arguments.
fn command(directory: &tempfile::TempDir, kernel: &[u8], more: &[&str]) -> Command {
    fs::write(directory.path().join("kernel"), kernel).unwrap();
    let arguments = [&["boot", "--kernel", "kernel"], more].concat();
    program::grouped(directory.path(), &arguments)
}

/// Runs a kernel to its end.
fn boot(kernel: &[u8], more: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    program::end_of_group(command(&directory, kernel, more).spawn().unwrap())
}

/// It ended with this code, having said the line and nothing else.
fn ended(output: &Output, code: i32) {
    let said = program::stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), LINE, "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

fn a_guest_says_a_line_and_switches_itself_off() {
    let kernel = bzimage::kernel(&hello(code::power_off()));
    // Other vCPUs wait for a call that never comes.
    for vcpus in ["1", "2", "32"] {
        ended(&boot(&kernel, &["--vcpus", vcpus]), 0);
    }
    ended(&boot(&kernel, &["--memory", "256MiB", "--balloon", "256MiB", "--backing", "memfd"]), 0);
}

fn an_elf_kernel_begins_at_its_pvh_entry() {
    // The same bytes are the same instructions in 32-bit mode.
    let output = boot(&elf::image(&code::power_off()), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", program::stderr(&output));
}

fn a_guest_that_resets_ends_with_4() {
    // The keyboard controller's reset line, and ACPI's reset register.
    for (port, value) in [(0x64, 0xfe), (0x602, 1)] {
        let output = boot(&bzimage::kernel(&hello(code::out(port, value))), &["--vcpus", "2"]);
        ended(&output, 4);
        assert!(program::stderr(&output).contains("reset"), "{}", program::stderr(&output));
    }
}

fn a_guest_that_crashes_ends_with_its_registers() {
    for vcpus in ["1", "2"] {
        let output = boot(&bzimage::kernel(&hello(code::triple_fault())), &["--vcpus", vcpus]);
        ended(&output, 1);
        let said = program::stderr(&output);
        for word in ["vCPU 0: triple fault", "rsp ", "cr0 ", "cr3 "] {
            assert!(said.contains(word), "no {word:?}: {said}");
        }
        // Where it was, or why nobody knows.
        assert!(said.contains("rip 0x0000000000100") || said.contains("the registers of a reset"), "{said}");
    }
}

/// A guest, and its console up to the end of [`LINE`].
struct Running {
    child: Child,
    console: BufReader<ChildStdout>,
    _directory: tempfile::TempDir,
}

impl Running {
    fn start(code: Vec<u8>, prepare: impl FnOnce(Command) -> Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = command(&directory, &bzimage::kernel(&hello(code)), &["--vcpus", "2"]);
        let mut child = prepare(command).spawn().unwrap();
        let mut console = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        console.read_line(&mut line).unwrap();
        assert_eq!(line, LINE);
        Self { child, console, _directory: directory }
    }

    /// Sends the signal and waits for the end that it makes.
    fn end_by(self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        let output = program::end_of_group(self.child);
        assert_eq!(output.status.code(), Some(130), "{}", program::stderr(&output));
        let mut rest = String::new();
        BufReader::new(self.console).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "the console had more to say");
    }
}

fn a_signal_ends_a_guest_that_never_would() {
    let before = host();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        Running::start(code::spin(), |command| command).end_by(signal);
    }
    Running::start(code::halt(), |command| command).end_by(Signal::TERM);
    assert_eq!(host(), before);
}

fn nothing_is_lost_between_two_pipes() {
    let len: u32 = if emulated() { 5_000 } else { 100_000 };
    // Every byte but the one that ends the input, in no order that a buffer's size divides.
    let sent: Vec<u8> = (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .map(|byte| if byte == code::END_OF_INPUT { b'\n' } else { byte })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let mut command = command(&directory, &bzimage::kernel(&code::echo()), &[]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = [&sent[..], &[code::END_OF_INPUT]].concat();
    // Held open until the guest has it all: its end is the guest's to find.
    let writer = std::thread::spawn(move || input.write_all(&bytes).map(|()| input));
    let output = program::end_of_group(child);
    let written = writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", program::stderr(&output));
    drop(written.unwrap());
    let first = sent.iter().zip(&output.stdout).position(|(sent, came)| sent != came);
    assert_eq!((output.stdout.len(), first), (sent.len(), None), "bytes that came, and the first wrong one");
}

fn a_console_that_nobody_reads_stops_no_guest() {
    let text = "nobody will ever read this\n".repeat(500);
    let kernel = bzimage::kernel(&[code::say(&text), code::power_off()].concat());
    let directory = tempfile::tempdir().unwrap();
    let mut child = command(&directory, &kernel, &[]).spawn().unwrap();
    drop(child.stdout.take());
    let output = program::end_of_group(child);
    assert_eq!(output.status.code(), Some(0), "{}", program::stderr(&output));
}

/// CPU time of a process so far, all threads together, in clock ticks.
fn cpu_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may hold anything: state, then 10 more, then utime and stime.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// A thread that asks again and again for input that will never come uses every tick there is; one that waits uses
/// none, once the start is over.
fn input_that_has_ended_costs_no_time() {
    const LOOK: Duration = Duration::from_millis(200);
    let null = |command| command;
    let ended_pipe = |mut command: Command| {
        let (read, write) = std::io::pipe().unwrap();
        drop(write);
        command.stdin(read);
        command
    };
    let closed = |command: Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$0\" \"$@\" <&-"]).arg(command.get_program()).args(command.get_args());
        shell.current_dir(command.get_current_dir().unwrap());
        shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        shell
    };
    let variants: [(&str, &dyn Fn(Command) -> Command); 3] =
        [("/dev/null", &null), ("a pipe that has ended", &ended_pipe), ("closed", &closed)];
    for (name, prepare) in variants {
        let running = Running::start(code::halt(), prepare);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = cpu_time(running.child.id());
            std::thread::sleep(LOOK);
            if cpu_time(running.child.id()) == before {
                break;
            }
            assert!(Instant::now() < deadline, "input is {name}, and the process never comes to rest");
        }
        running.end_by(Signal::TERM);
    }
}
