//! The writer on real pipes and devices.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::channel;

use rustix::pipe::{PipeFlags, pipe_with};

use super::*;
use crate::output::queue::ROOM;

/// The limit for a call that must not block, on a busy host.
const SOON: Duration = Duration::from_secs(20);

/// A writer to these two. Its thread never ends.
fn writer(out: impl Into<OwnedFd>, err: impl Into<OwnedFd>) -> &'static Writer {
    let kept: &'static [OwnedFd; 2] = Box::leak(Box::new([out.into(), err.into()]));
    Box::leak(Box::new(Writer::new([kept[0].as_fd(), kept[1].as_fd()])))
}

fn pipe() -> (File, File) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (read.into(), write.into())
}

fn device(path: &str) -> File {
    File::options().write(true).open(path).unwrap()
}

/// Panics unless `what` returns within [`SOON`].
fn soon<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = channel();
    std::thread::spawn(move || send.send(what()));
    receive.recv_timeout(SOON).expect("it waits for a reader")
}

/// Reads until the text ends with `end`.
fn read_until(from: &mut File, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let mut some = [0; 1 << 16];
        let count = from.read(&mut some).unwrap();
        assert!(count > 0, "it ended without {end:?}");
        text.extend_from_slice(&some[..count]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn a_full_stream_blocks_neither_its_writer_nor_the_other_stream() {
    let ((mut out, to_out), (mut err, to_err)) = (pipe(), pipe());
    let writer = writer(to_out, to_err);
    soon(move || (0..5000).for_each(|_| writer.say(Stream::Out, &[b'x'; 1000], Keep::WithRoom)));
    writer.say(Stream::Err, b"stopping\n", Keep::WithRoom);
    assert_eq!(soon(move || read_until(&mut err, "\n")), "stopping\n");
    // A late reader gets the kept text, and the count of the dropped bytes.
    let text = soon(move || read_until(&mut out, "been read]\n"));
    let (kept, note) = text.split_once("\n[zapscope: ").unwrap();
    let dropped: usize = note.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(kept.len() + dropped, 5_000_000);
    assert!((ROOM - 1000..ROOM + (1 << 17)).contains(&kept.len()), "{}", kept.len());
}

#[test]
fn the_end_waits_for_a_slow_reader_and_loses_nothing() {
    let ((mut out, to_out), (_err, to_err)) = (pipe(), pipe());
    let writer = writer(to_out, to_err);
    let table = vec![b'x'; 3 << 20];
    writer.say(Stream::Out, &table, Keep::Always);
    writer.say(Stream::Out, b"\nend", Keep::Always);
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(writer.finish(None)));
    assert!(end.recv_timeout(2 * IDLE).is_err(), "it waits although nothing moves");
    assert_eq!(soon(move || read_until(&mut out, "\nend")).len(), table.len() + 4);
    assert_eq!(end.recv_timeout(SOON), Ok(None));
}

#[test]
fn a_stop_ends_the_wait_for_a_reader_that_does_not_read() {
    let ((_out, to_out), (mut err, to_err)) = (pipe(), pipe());
    let writer = writer(to_out, to_err);
    writer.say(Stream::Out, &vec![b'x'; 3 << 20], Keep::Always);
    let (ended, end) = channel();
    std::thread::spawn(move || ended.send(writer.finish(None)));
    assert!(end.recv_timeout(2 * IDLE).is_err(), "nobody has asked for a stop");
    writer.hurry();
    writer.say(Stream::Err, b"SIGTERM: stopping\n", Keep::WithRoom);
    assert_eq!(end.recv_timeout(SOON), Ok(None));
    assert_eq!(soon(move || read_until(&mut err, "\n")), "SIGTERM: stopping\n");
    // And again, after the stop.
    assert_eq!(soon(move || writer.finish(None)), None);
}

#[test]
fn a_limit_ends_the_wait() {
    let ((_out, to_out), (_err, to_err)) = (pipe(), pipe());
    let writer = writer(to_out, to_err);
    writer.say(Stream::Err, &vec![b'x'; 1 << 20], Keep::Always);
    assert_eq!(soon(move || writer.finish(Some(Duration::from_millis(50)))), None);
}

#[test]
fn a_closed_reader_is_no_failure_and_does_not_affect_the_other_stream() {
    let ((out, to_out), (mut err, to_err)) = (pipe(), pipe());
    drop(out);
    let writer = writer(to_out, to_err);
    for _ in 0..100 {
        writer.say(Stream::Out, &[b'x'; 10_000], Keep::Always);
    }
    writer.say(Stream::Err, b"done\n", Keep::WithRoom);
    assert_eq!(soon(move || writer.finish(None)), None);
    assert_eq!(soon(move || read_until(&mut err, "\n")), "done\n");
}

#[test]
fn text_for_a_closed_standard_error_is_dropped() {
    let ((mut out, to_out), (err, to_err)) = (pipe(), pipe());
    drop(err);
    let writer = writer(to_out, to_err);
    writer.say(Stream::Err, b"nobody hears this\n", Keep::WithRoom);
    writer.say(Stream::Out, b"table\n", Keep::Always);
    writer.say(Stream::Err, b"nor this\n", Keep::Always);
    assert_eq!(soon(move || writer.finish(None)), None);
    assert_eq!(soon(move || read_until(&mut out, "\n")), "table\n");
}

#[test]
fn a_full_disk_is_a_failure_of_results_and_not_of_messages() {
    let (mut err, to_err) = pipe();
    let full = writer(device("/dev/full"), to_err);
    full.say(Stream::Out, b"table\n", Keep::Always);
    full.say(Stream::Err, b"done\n", Keep::WithRoom);
    assert_eq!(soon(move || full.finish(None)), Some(Errno::NOSPC));
    assert_eq!(soon(move || read_until(&mut err, "\n")), "done\n");
    let full = writer(device("/dev/null"), device("/dev/full"));
    full.say(Stream::Err, b"done\n", Keep::WithRoom);
    full.say(Stream::Out, b"table\n", Keep::Always);
    assert_eq!(soon(move || full.finish(None)), None);
}

#[test]
fn a_status_is_erased_by_other_text_and_at_the_end() {
    let ((_out, to_out), (mut err, to_err)) = (pipe(), pipe());
    let writer = writer(to_out, to_err);
    writer.status(Some(Status::new("[1/2] sparse".to_owned())));
    let mut text = soon(move || (read_until(&mut err, " s)"), err));
    assert_eq!(text.0, "\r\x1b[2K[1/2] sparse (0 s)");
    writer.say(Stream::Err, b"zram0 added\n", Keep::WithRoom);
    text = soon(move || (read_until(&mut text.1, " s)"), text.1));
    assert!(text.0.starts_with("\r\x1b[2Kzram0 added\n\r\x1b[2K[1/2] sparse ("), "{}", text.0);
    assert_eq!(soon(move || writer.finish(None)), None);
    assert_eq!(soon(move || read_until(&mut text.1, "2K")), "\r\x1b[2K");
}
