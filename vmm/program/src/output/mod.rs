//! Standard output and standard error, which nothing else in the program writes.
//!
//! | function | stream | if it is not read |
//! | --- | --- | --- |
//! | [`result()`], [`json`] | standard output | all of it waits until the end |
//! | [`live`] | standard output | 1 MiB waits; more is dropped, and a note in its place has the count |
//! | [`Console`] | standard output, the guest's bytes unchanged | the same |
//! | [`message`], [`progress`], [`status()`] | standard error | the same |
//! | [`beside`] | standard error | all of it waits until the end |
//!
//! None of these functions blocks, panics or fails. [`finish`] waits for the readers at the end of the program. In all text but
//! the console's, control characters are made visible, because names, errors and reports quote text of other programs.

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

/// The limit on the wait for a reader of a panic's text.
const PANIC: Duration = Duration::from_millis(200);

static WRITER: Writer = {
    // SAFETY: open for the life of the process: the standard library opens /dev/null for a standard descriptor that is closed
    // at the start, and this program closes none of them.
    let out = unsafe { BorrowedFd::borrow_raw(libc::STDOUT_FILENO) };
    // SAFETY: as above.
    let err = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    Writer::new([out, err])
};

/// A result.
pub fn result(text: impl Display) {
    WRITER.say(Stream::Out, visible::lines(&text.to_string()).as_bytes(), Keep::Always);
}

/// A result in JSON.
pub fn json(text: impl Display) {
    WRITER.say(Stream::Out, visible::json(&text.to_string()).as_bytes(), Keep::Always);
}

/// A line of a measurement in progress.
pub fn live(text: impl Display) {
    say_item(Stream::Out, &text.to_string());
}

/// A message to the user: `zapscope: TEXT`.
pub fn message(text: impl Display) {
    say_item(Stream::Err, &format!("zapscope: {text}"));
}

/// A line on standard error.
pub fn progress(text: impl Display) {
    say_item(Stream::Err, &text.to_string());
}

/// Further lines are indented, so that quoted text cannot pass for a message of this program.
fn say_item(stream: Stream, text: &str) {
    let text = format!("{}\n", visible::item(text.trim_end()));
    WRITER.say(stream, visible::lines(&text).as_bytes(), Keep::WithRoom);
}

/// The present activity: on the last line if standard error is a terminal, else a line of its own.
pub fn status(text: impl Display) {
    match messages_go_to_a_terminal() {
        true => WRITER.status(Some(Status::new(visible::line(&text.to_string()).into_owned()))),
        false => progress(text),
    }
}

/// Removes the line of the present activity.
pub fn clear_status() {
    WRITER.status(None);
}

/// Text for the user beside a result for a program: on standard error.
pub fn beside(text: impl Display) {
    WRITER.say(Stream::Err, visible::lines(&text.to_string()).as_bytes(), Keep::Always);
}

/// The destination of a guest's console. It must not block: a vCPU or the device thread calls it with the port's lock held.
pub trait Sink: Send {
    /// The next bytes of the guest.
    fn take(&mut self, bytes: &[u8]);
}

/// The console of a guest on standard output, its bytes unchanged.
#[derive(Clone, Copy, Debug)]
pub struct Console;

impl Sink for Console {
    fn take(&mut self, bytes: &[u8]) {
        WRITER.say(Stream::Out, bytes, Keep::WithRoom);
    }
}

/// Whether standard error is a terminal.
#[expect(clippy::disallowed_methods, reason = "only asks whether it is a terminal")]
fn messages_go_to_a_terminal() -> bool {
    io::stderr().is_terminal()
}

/// A stop was asked for: from now on [`finish`] does not wait for a reader that does not read.
pub fn hurry() {
    WRITER.hurry();
}

/// Waits for the readers, for at most `limit`.
pub fn finish_within(limit: Duration) {
    WRITER.finish(Some(limit));
}

/// Waits for the readers, however slow. Returns the error of standard output, unless its reader has closed it.
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

/// Prints panics as messages. The hook waits a moment for the reader, because the process may end after it.
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
