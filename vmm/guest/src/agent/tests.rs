//! The link against an agent that plays a plan: what it should say, and every lie.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use guest_abi::block::Outcome;
use guest_abi::layout::{AREA_SIZE, ARENA_GPA, MAX_VCPUS};
use guest_abi::link::{
    ABI_VERSION, AreaGpas, Decoder, FromAgent, HEADER_BYTES, LinkError, MAX_PAYLOAD, Mapped, Pages, Request,
    ToAgent,
};
use guest_abi::order::{RawOrder, Task, Walk, WorkOrder};
use guest_mem::{Backing, Gpa, GpaRange, Region};
use proptest::prelude::*;

use super::*;
use crate::{Area, CrashKind, GuestError, Mailbox};

/// Longer than anything here takes on the slowest machine; waited for only where something is broken.
const LONG: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// The agent's end of the socket.
struct Peer {
    socket: UnixStream,
    decoder: Box<Decoder>,
    buffer: Vec<u8>,
}

impl Peer {
    fn say(&mut self, message: FromAgent<'_>) {
        let mut buffer = [0; HEADER_BYTES + MAX_PAYLOAD];
        let frame = message.encode(&mut buffer).unwrap();
        self.socket.write_all(frame).unwrap();
    }

    fn hello(&mut self, vcpus: u16) {
        self.say(FromAgent::Hello { abi: ABI_VERSION, vcpus, release: "6.1.0" });
    }

    /// Hands the next request to `with`; `None` at the end.
    fn hear<R>(&mut self, with: impl FnOnce(ToAgent<'_>) -> R) -> Option<R> {
        loop {
            let mut rest = &self.buffer[..];
            let frame = self.decoder.next(&mut rest).unwrap();
            let used = self.buffer.len() - rest.len();
            if let Some(frame) = frame {
                let answer = with(ToAgent::decode(frame).unwrap());
                self.buffer.drain(..used);
                return Some(answer);
            }
            self.buffer.clear();
            let mut bytes = [0; 1024];
            match self.socket.read(&mut bytes) {
                Ok(len @ 1..) => self.buffer.extend_from_slice(&bytes[..len]),
                _ => return None,
            }
        }
    }

    fn expect(&mut self, expected: ToAgent<'_>) {
        assert_eq!(self.hear(|message| assert_eq!(message, expected)), Some(()));
    }
}

/// A link to an agent that plays `plan`, and what the agent logs.
struct Play {
    link: Link,
    agent: Option<JoinHandle<()>>,
    logged: Arc<Mutex<Vec<String>>>,
}

impl Play {
    fn new(patience: Duration, plan: impl FnOnce(&mut Peer) + Send + 'static) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let logged = Arc::new(Mutex::new(Vec::new()));
        let log = logged.clone();
        let link = Link::new(ours, patience, move |text| log.lock().unwrap().push(text.to_owned())).unwrap();
        let agent = std::thread::spawn(move || {
            let mut peer = Peer { socket: theirs, decoder: Box::new(Decoder::new()), buffer: Vec::new() };
            plan(&mut peer);
        });
        Self { link, agent: Some(agent), logged }
    }

    /// Waits for the plan's end.
    fn over(&mut self) {
        self.agent.take().unwrap().join().unwrap();
    }
}

/// Control areas of this test's own, from both sides.
struct Areas(Arc<Region>);

impl Areas {
    fn new(count: u64) -> Self {
        Self(Arc::new(Region::map(count * AREA_SIZE, Backing::Base4k).unwrap()))
    }

    fn area(&self, vcpu: u64) -> Area {
        Area::new(self.0.clone(), self.0.hva_at(vcpu * AREA_SIZE).unwrap()).unwrap()
    }
}

fn gpas(gpas: &[u64]) -> AreaGpas {
    let mut all = AreaGpas::default();
    assert!(gpas.iter().all(|&gpa| all.push(gpa)));
    all
}

fn ram(range: GpaRange) -> bool {
    range.end() <= Gpa::new(1024 * MIB)
}

const ORDER: WorkOrder =
    WorkOrder { start: ARENA_GPA, len: 4096, walk: Walk::Sequential, task: Task::Fill { generation: 1 } };

/// What ended the link, once it has.
fn end_of(link: &Link) -> End {
    // Counters of a link that has ended fail at once; of one that has not yet, at the end of the plan.
    match link.counters() {
        Err(AgentError::Ended(end)) => end,
        other => panic!("the link lives: {other:?}"),
    }
}

#[test]
fn an_agent_that_keeps_to_the_protocol_is_believed() {
    let mut play = Play::new(LONG, |agent| {
        agent.say(FromAgent::Log { text: "module x: no\x1b[2J" });
        agent.hello(2);
        agent.expect(ToAgent::MapArena { bytes: 64 * MIB, pages: Pages::Huge });
        let area_gpas = gpas(&[2 * MIB, 4 * MIB]);
        agent.say(FromAgent::Mapped(Mapped { arena_gpa: 512 * MIB, huge_bytes: 62 * MIB, area_gpas }));
        agent.expect(ToAgent::Counters);
        agent.say(FromAgent::CountersAre { moved_pages: 0, huge_bytes: 60 * MIB, text: "pgfault 7\n" });
    });
    let hello = play.link.wait_hello(LONG).unwrap();
    assert_eq!(hello, Hello { vcpus: 2, release: "6.1.0".into() });
    let map = play.link.map_arena(64 * MIB, Pages::Huge, &ram).unwrap();
    let range = |at, len| GpaRange::with_len(Gpa::new(at), len).unwrap();
    assert_eq!(map.arena, range(512 * MIB, 64 * MIB));
    assert_eq!(map.areas, [range(2 * MIB, AREA_SIZE), range(4 * MIB, AREA_SIZE)]);
    assert_eq!(map.huge_bytes, 62 * MIB);
    let counters = play.link.counters().unwrap();
    assert_eq!((counters.moved_pages, counters.text.as_str()), (0, "pgfault 7\n"));
    play.over();
    assert!(matches!(end_of(&play.link), End::Closed));
    assert_eq!(play.logged.lock().unwrap()[..], ["module x: no\u{fffd}[2J"], "no terminal is commanded");
}

#[test]
fn couriers_carry_orders_and_each_waits_for_its_own() {
    let areas = Areas::new(2);
    let theirs = [areas.area(0), areas.area(1)];
    let mut play = Play::new(LONG, move |agent| {
        agent.hello(2);
        let mut hear = || {
            agent.hear(|message| match message {
                ToAgent::Order { vcpu, order } => (vcpu, order),
                other => panic!("{other:?}"),
            })
        };
        // Both orders are there before either is done, and they are done in the other order.
        let orders = [hear().unwrap(), hear().unwrap()];
        for (vcpu, order) in orders.into_iter().rev() {
            assert_eq!(order, RawOrder::from(ORDER));
            theirs[usize::from(vcpu)]
                .set_outcome(Outcome { visits: 10 + u64::from(vcpu), ..Outcome::default() });
            agent.say(FromAgent::Done { vcpu });
        }
        // One that the guest refuses.
        agent.hear(|_| ()).unwrap();
        theirs[1].set_outcome(Outcome { refused: 1, ..Outcome::default() });
        agent.say(FromAgent::Done { vcpu: 1 });
        assert!(agent.hear(|_| ()).is_none());
    });
    let mailboxes = [0, 1].map(|vcpu| Arc::new(Mailbox::new(vcpu, areas.area(vcpu.into()))));
    let couriers = mailboxes.clone().map(|mailbox| play.link.courier(mailbox).unwrap());
    for mailbox in &mailboxes {
        mailbox.wait(LONG).unwrap();
        mailbox.submit(&ORDER).unwrap();
    }
    for mailbox in &mailboxes {
        assert_eq!(mailbox.wait(LONG).unwrap().visits, 10 + u64::from(mailbox.vcpu()));
    }
    mailboxes[1].submit(&ORDER).unwrap();
    assert!(matches!(mailboxes[1].wait(LONG), Err(GuestError::Refused { vcpu: 1, .. })));
    for mailbox in &mailboxes {
        mailbox.quit();
    }
    for courier in couriers {
        courier.end(LONG).unwrap().unwrap();
    }
    play.link.end("over");
    play.over();
}

#[test]
fn when_the_agent_fails_every_vcpu_at_work_says_why() {
    let areas = Areas::new(1);
    let mailbox = Arc::new(Mailbox::new(0, areas.area(0)));
    let mut play = Play::new(LONG, |agent| {
        agent.hello(1);
        agent.hear(|_| ()).unwrap();
        agent.say(FromAgent::Failed { what: "vCPU 0's thread got SIGBUS" });
    });
    let courier = play.link.courier(mailbox.clone()).unwrap();
    mailbox.wait(LONG).unwrap();
    mailbox.submit(&ORDER).unwrap();
    let error = mailbox.wait(LONG).unwrap_err();
    let GuestError::Crashed(report) = &error else { panic!("{error}") };
    assert_eq!(report.kind, CrashKind::Agent("vCPU 0's thread got SIGBUS".into()));
    assert_eq!(error.to_string(), "vCPU 0: the guest's agent failed: vCPU 0's thread got SIGBUS");
    courier.end(LONG).unwrap().unwrap();
    play.over();
}

#[test]
fn an_agent_s_last_words_outlive_the_end_of_its_guest() {
    let (said, hear) = std::sync::mpsc::channel();
    let mut play = Play::new(LONG, move |agent| {
        agent.hello(1);
        agent.say(FromAgent::Failed { what: "out of memory" });
        said.send(()).unwrap();
    });
    hear.recv().unwrap();
    // What the guest said before it went may lie unread in the socket.
    play.link.end("the guest powered off");
    assert!(matches!(end_of(&play.link), End::Failed(what) if what == "out of memory"));
    play.over();
}

#[test]
fn an_order_ends_with_the_link_and_a_later_one_fails_as_it_did() {
    let areas = Areas::new(2);
    let mailboxes = [0, 1].map(|vcpu| Arc::new(Mailbox::new(vcpu, areas.area(vcpu.into()))));
    let (says, hears) = std::sync::mpsc::channel();
    let mut play = Play::new(LONG, move |agent| {
        agent.hello(2);
        says.send(()).unwrap();
        while agent.hear(|_| ()).is_some() {}
    });
    // Not before it has said so: an end of the link is an end of its socket.
    hears.recv_timeout(LONG).unwrap();
    let couriers = mailboxes.clone().map(|mailbox| play.link.courier(mailbox).unwrap());
    for mailbox in &mailboxes {
        mailbox.wait(LONG).unwrap();
    }
    mailboxes[0].submit(&ORDER).unwrap();
    play.link.end("the guest was reset");
    mailboxes[1].submit(&ORDER).unwrap();
    for mailbox in &mailboxes {
        let error = mailbox.wait(LONG).unwrap_err().to_string();
        assert!(error.ends_with("the guest's agent failed: the guest was reset"), "{error}");
    }
    for courier in couriers {
        courier.end(LONG).unwrap().unwrap();
    }
    play.over();
}

#[test]
fn a_command_s_output_arrives_whole_however_fast_it_comes() {
    const FRAMES: usize = 300;
    let mut play = Play::new(LONG, |agent| {
        agent.hello(1);
        agent.expect(ToAgent::Shell { command: "yes" });
        for frame in 0..FRAMES {
            agent.say(FromAgent::ShellOutput { bytes: &[frame as u8; MAX_PAYLOAD] });
        }
        agent.say(FromAgent::ShellExited { status: 3 << 8 });
        agent.expect(ToAgent::Shell { command: "no" });
        agent.say(FromAgent::Refused { request: Request::Shell, what: "no /bin/sh" });
    });
    play.link.wait_hello(LONG).unwrap();
    let mut arrived = Vec::new();
    let status = play.link.shell("yes", &mut |bytes| arrived.extend_from_slice(bytes)).unwrap();
    assert_eq!(status.code(), Some(3));
    assert_eq!(arrived.len(), FRAMES * MAX_PAYLOAD);
    assert!(arrived.chunks(MAX_PAYLOAD).enumerate().all(|(n, bytes)| bytes.iter().all(|&b| b == n as u8)));
    let refused = play.link.shell("no", &mut |_| {});
    assert!(
        matches!(&refused, Err(AgentError::Refused { request: Request::Shell, what }) if what == "no /bin/sh"),
        "{refused:?}"
    );
    play.over();
}

#[test]
fn a_request_that_is_refused_leaves_the_link_as_it_was() {
    let mut play = Play::new(LONG, |agent| {
        agent.hello(1);
        agent.hear(|_| ()).unwrap();
        agent.say(FromAgent::Refused { request: Request::MapArena, what: "node 1 has 3 bytes" });
        agent.expect(ToAgent::Counters);
        agent.say(FromAgent::CountersAre { moved_pages: 5, huge_bytes: 0, text: "" });
    });
    let error = play.link.map_arena(2 * MIB, Pages::Small, &ram).unwrap_err().to_string();
    assert_eq!(error, "the guest's agent refused MapArena: node 1 has 3 bytes");
    assert_eq!(play.link.counters().unwrap().moved_pages, 5);
    let long = "x".repeat(MAX_PAYLOAD + 1);
    let error = play.link.shell(&long, &mut |_| {}).unwrap_err();
    assert!(matches!(error, AgentError::Request(LinkError::TooLong(_))), "{error}");
    play.over();
}

#[test]
fn an_agent_that_says_nothing_is_given_up() {
    let patience = Duration::from_millis(20);
    let mut play = Play::new(patience, |agent| {
        assert!(agent.hear(|_| ()).is_none());
    });
    let error = play.link.wait_hello(patience).unwrap_err();
    assert!(matches!(error, AgentError::Silent { what: "come up", .. }), "{error}");
    play.link.end("over");
    play.over();

    let mut play = Play::new(patience, |agent| {
        agent.hello(1);
        agent.expect(ToAgent::Counters);
        assert!(agent.hear(|_| ()).is_none(), "a late answer would be taken for another");
    });
    play.link.wait_hello(LONG).unwrap();
    assert!(matches!(play.link.counters(), Err(AgentError::Silent { .. })));
    assert!(matches!(
        play.link.map_arena(2 * MIB, Pages::Small, &ram),
        Err(AgentError::Ended(End::Ended(_)))
    ));
    play.over();
}

#[test]
fn a_command_ends_with_the_link() {
    let mut play = Play::new(LONG, |agent| {
        agent.hello(1);
        agent.expect(ToAgent::Shell { command: "sleep" });
        agent.say(FromAgent::ShellOutput { bytes: b"zz" });
        assert!(agent.hear(|_| ()).is_none());
    });
    let link = &play.link;
    // The output tells that the command has begun; what ends it comes from the other side of the VMM.
    let error = link.shell("sleep", &mut |_| link.end("interrupted")).unwrap_err();
    assert_eq!(error.to_string(), "the guest's agent failed: interrupted");
    play.over();
}

/// Says `messages` after a good Hello, and returns what came of it.
fn lie(messages: Vec<FromAgent<'static>>) -> End {
    let mut play = Play::new(LONG, move |agent| {
        agent.hello(1);
        messages.into_iter().for_each(|message| agent.say(message));
        while agent.hear(|_| ()).is_some() {}
    });
    let end = end_of(&play.link);
    play.over();
    end
}

#[test]
fn every_lie_ends_the_link_by_its_name() {
    let mapped = Mapped { arena_gpa: 0, huge_bytes: 0, area_gpas: AreaGpas::default() };
    let unasked = ProtocolError::Unasked;
    for (messages, expected) in [
        (vec![FromAgent::Done { vcpu: 0 }], ProtocolError::Idle(0)),
        (vec![FromAgent::Done { vcpu: MAX_VCPUS as u16 - 1 }], ProtocolError::Idle(31)),
        (vec![FromAgent::Mapped(mapped)], unasked(Request::MapArena)),
        (vec![FromAgent::ShellOutput { bytes: b"x" }], unasked(Request::Shell)),
        (vec![FromAgent::ShellExited { status: 0 }], unasked(Request::Shell)),
        (vec![FromAgent::Refused { request: Request::Shell, what: "" }], unasked(Request::Shell)),
        (vec![FromAgent::Refused { request: Request::MapArena, what: "" }], unasked(Request::MapArena)),
        (vec![FromAgent::Hello { abi: ABI_VERSION, vcpus: 1, release: "" }], ProtocolError::SecondHello),
    ] {
        let shown = format!("{messages:?}");
        let end = lie(messages);
        assert!(matches!(end, End::Violated(lie) if lie == expected), "{shown}: {end:?}");
    }
}

#[test]
fn a_hello_that_cannot_be_true_ends_the_link() {
    let hello = |abi, vcpus| FromAgent::Hello { abi, vcpus, release: "" };
    for (first, expected) in [
        (hello(ABI_VERSION + 1, 1), ProtocolError::Abi(ABI_VERSION + 1)),
        (hello(ABI_VERSION, 0), ProtocolError::Vcpus(0)),
        (hello(ABI_VERSION, MAX_VCPUS as u16 + 1), ProtocolError::Vcpus(33)),
        (FromAgent::Done { vcpu: 0 }, ProtocolError::NoHello),
        (FromAgent::ShellExited { status: 0 }, ProtocolError::NoHello),
    ] {
        let mut play = Play::new(LONG, move |agent| {
            agent.say(first);
            assert!(agent.hear(|_| ()).is_none());
        });
        let error = play.link.wait_hello(LONG).unwrap_err();
        assert!(matches!(error, AgentError::Ended(End::Violated(lie)) if lie == expected), "{error:?}");
        play.over();
    }
}

#[test]
fn what_is_no_message_ends_the_link_by_its_name() {
    let header = |kind: u16, len: u32| {
        let mut frame = b"zlnk\x01\x00".to_vec();
        frame.extend(kind.to_le_bytes());
        frame.extend(0_u16.to_le_bytes());
        frame.extend(len.to_le_bytes());
        frame
    };
    for (bytes, expected) in [
        (header(0x7777, 0), LinkError::Kind(0x7777)),
        (header(0x02, 0), LinkError::Kind(0x02)),
        (header(0x83, u32::MAX), LinkError::TooLong(u32::MAX.into())),
        (vec![0; 20], LinkError::Magic(0)),
    ] {
        let mut play = Play::new(LONG, move |agent| {
            agent.hello(1);
            agent.socket.write_all(&bytes).unwrap();
            while agent.hear(|_| ()).is_some() {}
        });
        let end = end_of(&play.link);
        assert!(matches!(end, End::Protocol(error) if error == expected), "{end:?}");
        play.over();
    }
}

#[test]
fn memory_that_cannot_be_there_is_refused_by_name() {
    let check = |arena_gpa, huge_bytes, areas: &[u64], vcpus| {
        let mapped = Mapped { arena_gpa, huge_bytes, area_gpas: gpas(areas) };
        ArenaMap::check(&mapped, 64 * MIB, vcpus, &ram).unwrap_err()
    };
    let range = |at, len| GpaRange::with_len(Gpa::new(at), len).unwrap();
    let areas = [2 * MIB, 4 * MIB];
    assert_eq!(check(512 * MIB + 4096, 0, &areas, 2), Misplaced::Unaligned(Gpa::new(512 * MIB + 4096)));
    assert_eq!(check(512 * MIB, 0, &[2 * MIB, 1], 2), Misplaced::Unaligned(Gpa::new(1)));
    let no_ram = |start, len| Misplaced::NoRam { start: Gpa::new(start), len };
    assert_eq!(check(1000 * MIB, 0, &areas, 2), no_ram(1000 * MIB, 64 * MIB));
    let last = u64::MAX - (2 * MIB - 1);
    assert_eq!(check(last, 0, &areas, 2), no_ram(last, 64 * MIB), "past the end of the address space");
    assert_eq!(check(512 * MIB, 0, &[2 * MIB, last], 2), no_ram(last, AREA_SIZE));
    assert_eq!(check(512 * MIB, 0, &areas, 3), Misplaced::Areas { areas: 2, vcpus: 3 });
    assert_eq!(check(512 * MIB, 65 * MIB, &areas, 2), Misplaced::Huge { huge: 65 * MIB, bytes: 64 * MIB });
    let area = range(2 * MIB, AREA_SIZE);
    assert_eq!(check(512 * MIB, 0, &[2 * MIB, 2 * MIB], 2), Misplaced::Overlap(area, area));
    let (arena, inside) = (range(512 * MIB, 64 * MIB), range(574 * MIB, AREA_SIZE));
    assert_eq!(check(512 * MIB, 0, &[2 * MIB, 574 * MIB], 2), Misplaced::Overlap(arena, inside));
}

#[test]
fn an_arena_outside_ram_is_an_error_of_the_request() {
    let mut play = Play::new(LONG, |agent| {
        agent.hello(1);
        agent.hear(|_| ()).unwrap();
        let area_gpas = gpas(&[2 * MIB]);
        agent.say(FromAgent::Mapped(Mapped { arena_gpa: 4096 * MIB, huge_bytes: 0, area_gpas }));
    });
    let error = play.link.map_arena(2 * MIB, Pages::Small, &ram).unwrap_err();
    assert!(matches!(error, AgentError::Misplaced(Misplaced::NoRam { .. })), "{error}");
    play.over();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_whatever_hang_the_link_or_make_it_panic(
        hello in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut play = Play::new(LONG, move |agent| {
            if hello {
                agent.hello(1);
            }
            // The link may have ended before all is written.
            let _ = agent.socket.write_all(&bytes);
        });
        play.over();
        prop_assert!(matches!(end_of(&play.link), End::Protocol(_) | End::Closed | End::Violated(_) | End::Socket(_)));
    }
}
