//! Several threads at one descriptor: who is woken, and that all can be stopped.

use std::sync::mpsc::channel;
use std::thread::scope;

use guest_mem::{Address, Hva};
use uffd::{Event, EventBuffer, Features, MapAs, Stop, Waiter, Wake, Woken};

use super::{MISSING, content, memory, open, page, word};

test_memory::tests! {
    one_fault_wakes_one_of_those_who_wait: [Userfault, SystemCalls],
    a_stop_is_seen_by_all_and_by_who_comes_late: [Userfault],
    what_one_handler_leaves_unread_is_still_there: [Userfault],
    all_who_are_always_woken_see_one_fault: [Userfault],
}

/// Whether a thread sleeps in `epoll_pwait`.
fn sleeps_in_epoll(thread: i32) -> bool {
    let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap();
    let number = call.split_whitespace().next().unwrap();
    number == libc::SYS_epoll_pwait.to_string() || number == libc::SYS_epoll_wait.to_string()
}

fn one_fault_wakes_one_of_those_who_wait() {
    const HANDLERS: usize = 3;
    let region = memory();
    scope(|threads| {
        let userfault = open(Features::empty());
        userfault.register(&region, region.range(), MISSING).unwrap();
        let (userfault, stop) = (std::sync::Arc::new(userfault), std::sync::Arc::new(Stop::new().unwrap()));
        let (tell, told) = channel();
        let handlers: Vec<_> = (0..HANDLERS)
            .map(|_| {
                let (userfault, stop, tell) = (userfault.clone(), stop.clone(), tell.clone());
                threads.spawn(move || {
                    let waiter = Waiter::new(&userfault, &stop).unwrap();
                    let mut buffer = EventBuffer::new(4);
                    tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                    let mut woken = 0;
                    while waiter.wait().unwrap() == Woken::Events {
                        woken += 1;
                        userfault.read_events(&mut buffer).unwrap();
                        while let Some(event) = buffer.pop() {
                            let Ok(Event::Fault(fault)) = event else { panic!("{event:?}") };
                            userfault.copy(fault.page(), &content(1), MapAs::Writable, Wake::Yes).unwrap();
                        }
                    }
                    woken
                })
            })
            .collect();
        let sleepers: Vec<i32> = told.iter().take(HANDLERS).collect();
        for fault in 0..5 {
            let _waiting = harness::waiting("all handlers to sleep in epoll");
            while !sleepers.iter().all(|&one| sleeps_in_epoll(one)) {
                std::thread::yield_now();
            }
            assert_eq!(region.read_u64(page(&region, fault).start()).unwrap(), word(0));
        }
        stop.raise().unwrap();
        let woken: Vec<u32> = handlers.into_iter().map(|handler| handler.join().unwrap()).collect();
        assert_eq!(woken.iter().sum::<u32>(), 5, "one wake-up for each fault: {woken:?}");
    });
}

fn a_stop_is_seen_by_all_and_by_who_comes_late() {
    let userfault = open(Features::empty());
    let stop = Stop::new().unwrap();
    scope(|threads| {
        let waits: Vec<_> = (0..3)
            .map(|_| threads.spawn(|| Waiter::new(&userfault, &stop).unwrap().wait().unwrap()))
            .collect();
        stop.raise().unwrap();
        stop.raise().unwrap();
        assert!(waits.into_iter().all(|wait| wait.join().unwrap() == Woken::Stop));
    });
    assert_eq!(Waiter::new(&userfault, &stop).unwrap().wait().unwrap(), Woken::Stop);
}

fn what_one_handler_leaves_unread_is_still_there() {
    let region = memory();
    scope(|threads| {
        let userfault = open(Features::empty());
        userfault.register(&region, region.range(), MISSING).unwrap();
        let touches: Vec<_> = (0..2)
            .map(|at| {
                let page = page(&region, at).start();
                let region = &region;
                threads.spawn(move || region.read_u64(page).unwrap())
            })
            .collect();
        let stop = Stop::new().unwrap();
        let waiter = Waiter::new(&userfault, &stop).unwrap();
        // Room for one: the other fault needs another round, and is not lost.
        let mut buffer = EventBuffer::new(1);
        let mut served: Vec<Hva> = Vec::new();
        while served.len() < 2 {
            assert_eq!(waiter.wait().unwrap(), Woken::Events);
            userfault.read_events(&mut buffer).unwrap();
            if let Some(event) = buffer.pop() {
                let Ok(Event::Fault(fault)) = event else { panic!("{event:?}") };
                userfault.copy(fault.page(), &content(1), MapAs::Writable, Wake::Yes).unwrap();
                served.push(fault.page().align_down(4096));
            }
        }
        assert!(touches.into_iter().all(|touch| touch.join().unwrap() == word(0)));
    });
}

fn all_who_are_always_woken_see_one_fault() {
    let region = memory();
    let userfault = open(Features::empty());
    userfault.register(&region, region.range(), MISSING).unwrap();
    let stop = Stop::new().unwrap();
    scope(|threads| {
        let waits: Vec<_> = (0..3)
            .map(|_| threads.spawn(|| Waiter::always_woken(&userfault, &stop).unwrap().wait().unwrap()))
            .collect();
        let touch = threads.spawn(|| region.read_u64(page(&region, 0).start()).unwrap());
        // The fault is not read before all have seen it.
        let seen: Vec<Woken> = waits.into_iter().map(|wait| wait.join().unwrap()).collect();
        let mut buffer = EventBuffer::new(1);
        let read = userfault.read_events(&mut buffer);
        userfault.copy(page(&region, 0).start(), &content(1), MapAs::Writable, Wake::Yes).unwrap();
        assert_eq!(seen, [Woken::Events; 3]);
        read.unwrap();
        assert!(!buffer.is_empty());
        assert_eq!(touch.join().unwrap(), word(0));
    });
}
