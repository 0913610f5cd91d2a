//! `zapscope boot` with kernels of a few instructions: every way a guest can end, and its console both ways.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::host::emulated;
use tests::place::{Ended, Place};
use tests::swaps::Swaps;
use tests::{bzimage, code, elf, program};

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
fn command(place: &Place, kernel: &[u8], more: &[&str]) -> Command {
    place.put("kernel", kernel);
    program::grouped(place.path(), &[&["boot", "--kernel", "kernel"], more].concat())
}

/// Runs a kernel to its end.
fn boot(kernel: &[u8], more: &[&str]) -> Ended {
    program::end_of_group(command(&Place::new(), kernel, more).spawn().unwrap()).into()
}

/// It ended with this code, having said the line and nothing else.
fn ended(ended: Ended, code: i32) -> Ended {
    let ended = ended.with(code);
    assert_eq!(ended.text(), LINE, "{}", ended.said);
    ended
}

fn a_guest_says_a_line_and_switches_itself_off() {
    let kernel = bzimage::kernel(&hello(code::power_off()));
    // Other vCPUs wait for a call that never comes.
    for vcpus in ["1", "2", "32"] {
        ended(boot(&kernel, &["--vcpus", vcpus]), 0);
    }
    ended(boot(&kernel, &["--memory", "256MiB", "--balloon", "256MiB", "--backing", "memfd"]), 0);
}

fn an_elf_kernel_begins_at_its_pvh_entry() {
    // The same bytes are the same instructions in 32-bit mode.
    boot(&elf::image(&code::power_off()), &[]).with(0);
}

fn a_guest_that_resets_ends_with_4() {
    // The keyboard controller's reset line, and ACPI's reset register.
    for (port, value) in [(0x64, 0xfe), (0x602, 1)] {
        let kernel = bzimage::kernel(&hello(code::out(port, value)));
        ended(boot(&kernel, &["--vcpus", "2"]), 4).says(&["reset"]);
    }
}

fn a_guest_that_crashes_ends_with_its_registers() {
    for vcpus in ["1", "2"] {
        let kernel = bzimage::kernel(&hello(code::triple_fault()));
        let crashed = ended(boot(&kernel, &["--vcpus", vcpus]), 1);
        let said = crashed.says(&["vCPU 0: triple fault", "rsp ", "cr0 ", "cr3 "]).said;
        // The place of the fault, or why it is not known.
        assert!(said.contains("rip 0x0000000000100") || said.contains("the registers of a reset"), "{said}");
    }
}

/// A guest, and its console up to the end of [`LINE`].
struct Running {
    child: Child,
    console: BufReader<ChildStdout>,
    _place: Place,
}

impl Running {
    fn start(code: Vec<u8>, prepare: impl FnOnce(Command) -> Command) -> Self {
        let place = Place::new();
        let command = command(&place, &bzimage::kernel(&hello(code)), &["--vcpus", "2"]);
        let mut child = prepare(command).spawn().unwrap();
        let mut console = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        console.read_line(&mut line).unwrap();
        assert_eq!(line, LINE);
        Self { child, console, _place: place }
    }

    /// Sends the signal and waits for the end that it makes.
    fn end_by(self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        Ended::from(program::end_of_group(self.child)).with(130);
        let mut rest = String::new();
        BufReader::new(self.console).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "the console had more to say");
    }
}

fn a_signal_ends_a_guest_that_never_would() {
    let before = Swaps::now();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        Running::start(code::spin(), |command| command).end_by(signal);
    }
    Running::start(code::halt(), |command| command).end_by(Signal::TERM);
    assert_eq!(Swaps::now(), before);
}

fn nothing_is_lost_between_two_pipes() {
    let len: u32 = if emulated() { 5_000 } else { 100_000 };
    // Every byte but the one that ends the input, in no order that a buffer's size divides.
    let sent: Vec<u8> = (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .map(|byte| if byte == code::END_OF_INPUT { b'\n' } else { byte })
        .collect();
    let place = Place::new();
    let mut command = command(&place, &bzimage::kernel(&code::echo()), &[]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = [&sent[..], &[code::END_OF_INPUT]].concat();
    // Held open until the guest has it all: its end is the guest's to find.
    let writer = std::thread::spawn(move || input.write_all(&bytes).map(|()| input));
    let ended = Ended::from(program::end_of_group(child)).with(0);
    drop(writer.join().unwrap().unwrap());
    let first = sent.iter().zip(&ended.out).position(|(sent, came)| sent != came);
    assert_eq!((ended.out.len(), first), (sent.len(), None), "bytes that came, and the first wrong one");
}

fn a_console_that_nobody_reads_stops_no_guest() {
    let text = "nobody will ever read this\n".repeat(500);
    let kernel = bzimage::kernel(&[code::say(&text), code::power_off()].concat());
    let place = Place::new();
    let mut child = command(&place, &kernel, &[]).spawn().unwrap();
    drop(child.stdout.take());
    Ended::from(program::end_of_group(child)).with(0);
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
