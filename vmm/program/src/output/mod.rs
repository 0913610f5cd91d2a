//! The one way out: standard output and standard error are written here and nowhere else.
//!
//! | what | where | if nobody reads |
//! | --- | --- | --- |
//! | [`result()`], [`json`] | standard output | waits until the end, all of it |
//! | [`live`] | standard output | 1 MiB waits; more is dropped, counted, and said so in its place |
//! | [`Console`] | standard output, byte by byte as the guest sends it | the same |
//! | [`message`], [`progress`], [`status()`] | standard error | the same |
//! | [`beside`] | standard error | waits until the end, all of it |
//!
//! Nothing here waits, panics, or fails: whether something can be shown decides nothing about the rest of the program.
//! [`finish`] waits for the readers at the program's end. Only the console is passed on raw; in all other text what a
//! terminal would obey is made visible, since names, errors and reports quote what others wrote.

mod queue;
mod status;
pub mod visible;
mod writer;

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;

use queue::{Keep, Stream};
use status::Status;
use writer::Writer;

/// How long a panic's text may take to be read.
const PANIC: Duration = Duration::from_millis(200);

static WRITER: Writer = {
    // SAFETY: open for the life of the process: the standard library opens /dev/null in the place of a standard
    // descriptor that is closed at the start, and whatever this program closes it has opened later.
    let out = unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) };
    // SAFETY: as above.
    let err = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    Writer::new([out, err])
};

/// A result, as it is.
pub fn result(text: impl Display) {
    WRITER.say(Stream::Out, visible::lines(&text.to_string()).as_bytes(), Keep::Always);
}

/// A result in JSON, as it is.
pub fn json(text: impl Display) {
    WRITER.say(Stream::Out, visible::json(&text.to_string()).as_bytes(), Keep::Always);
}

/// A line of what goes on being measured.
pub fn live(text: impl Display) {
    say_item(Stream::Out, &text.to_string());
}

/// Says something to the user: `zapscope: TEXT`.
pub fn message(text: impl Display) {
    say_item(Stream::Err, &format!("zapscope: {text}"));
}

/// A line on standard error.
pub fn progress(text: impl Display) {
    say_item(Stream::Err, &text.to_string());
}

/// Further lines are indented, so that a text that quotes others cannot say something in our name.
fn say_item(stream: Stream, text: &str) {
    let text = format!("{}\n", visible::item(text.trim_end()));
    WRITER.say(stream, visible::lines(&text).as_bytes(), Keep::WithRoom);
}

/// What goes on now, on the last line of a terminal that standard error is; elsewhere a line of its own.
pub fn status(text: impl Display) {
    match messages_go_to_a_terminal() {
        true => WRITER.status(Some(Status::new(visible::line(&text.to_string()).into_owned()))),
        false => progress(text),
    }
}

/// Nothing goes on any more.
pub fn clear_status() {
    WRITER.status(None);
}

/// What stands beside a result that a program reads: on standard error, as it is.
pub fn beside(text: impl Display) {
    WRITER.say(Stream::Err, visible::lines(&text.to_string()).as_bytes(), Keep::Always);
}

/// Where a guest's console goes. It takes all that it is given, and waits for nobody: it is called with the port's lock
/// held, by a vCPU or the device thread.
pub trait Sink: Send {
    /// Takes what the guest has printed next.
    fn take(&mut self, bytes: &[u8]);
}

/// The console of a guest, raw: its bytes are for the terminal that it is shown on.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl Sink for Console {
    fn take(&mut self, bytes: &[u8]) {
        WRITER.say(Stream::Out, bytes, Keep::WithRoom);
    }
}

/// Whether messages are read by a person at a terminal.
#[expect(clippy::disallowed_methods, reason = "only asks what it is")]
fn messages_go_to_a_terminal() -> bool {
    io::stderr().is_terminal()
}

/// The program was told to stop: its end no longer waits for a reader that does not read.
pub fn hurry() {
    WRITER.hurry();
}

/// The same for a program that ends when all else has ended.
pub fn finish_within(limit: Duration) {
    WRITER.finish(Some(limit));
}

/// Waits for the readers: a result is not lost because its reader is slow. Returns why standard output could not be
/// written; that its reader has gone is no reason.
pub fn finish() -> Option<Errno> {
    let failure = WRITER.finish(None);
    if let Some(errno) = failure {
        message(format_args!(
            "cannot write to standard output, the results there are not complete: {}",
            io::Error::from(errno)
        ));
        WRITER.finish(None);
    }
    failure
}

/// Says a panic the way everything is said. The text waits a moment to be read, since a panic may be the last thing
/// that happens.
pub fn say_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let trace = std::backtrace::Backtrace::capture();
        match trace.status() {
            std::backtrace::BacktraceStatus::Captured => {
                message(format_args!("thread '{name}' panicked: {panic}\n{trace}"));
            }
            _ => message(format_args!("thread '{name}' panicked: {panic}")),
        }
        WRITER.finish(Some(PANIC));
    }));
}
