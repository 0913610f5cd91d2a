use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use guest_mem::waits::WAKE;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::pc::Ending;
use crate::testing::in_ring_3;
use host::kvm_stats::KvmStats;
use linux_boot::Kernel;
use linux_boot::fixture::{self, KERNEL_AT, Load};

/// Where the tests' kernels write to memory: above what is loaded of them.
const NOTES: u64 = 0x110_0000;
/// A guest that runs in a circle.
const SPIN: [u8; 2] = [0xeb, 0xfe];

fn pc(vcpus: u32) -> Pc {
    let config = PcConfig {
        vcpus,
        memory: 32 << 20,
        backing: Backing::Base4k,
        arena_node: 0,
        slot_zap_all_quirk: true,
    };
    Pc::new(&Kvm::open().unwrap(), &config).unwrap()
}

/// Boots a kernel of this code, which is entered in 32-bit protected mode, and says how it ends.
fn boot(pc: &mut Pc, code: &[u8]) -> Receiver<Ending> {
    let text = Load { at: KERNEL_AT, bytes: code.to_vec(), memory: 4096 };
    let file = fixture::elf(KERNEL_AT, &[text], Some(KERNEL_AT as u32));
    let kernel = Kernel::identify(&file).unwrap();
    let (send, ended) = channel();
    pc.life().at_end(move |ending| send.send(ending.clone()).unwrap());
    pc.boot(&Boot { kernel: &kernel, initrd: None, cmdline: "", in_guest_decompression: false }).unwrap();
    ended
}

/// A serial port's screen.
struct Screen(Sender<Vec<u8>>);

impl Sink for Screen {
    fn take(&mut self, bytes: &[u8]) {
        // A test that has seen enough looks at it no more.
        let _ = self.0.send(bytes.to_vec());
    }
}

/// Waits for this text.
fn expect(screen: &Receiver<Vec<u8>>, text: &[u8]) {
    let mut shown = Vec::new();
    while shown != text {
        assert!(text.starts_with(&shown), "{:?}", String::from_utf8_lossy(&shown));
        shown.extend(screen.recv_timeout(WAKE).expect("it echoes"));
    }
}

/// Sends back what comes through the serial port.
const ECHO: [u8; 15] = [
    0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd
    0xec, 0xa8, 0x01, 0x74, 0xfb, // wait: in al, dx; test al, 1; jz wait
    0xb2, 0xf8, 0xec, 0xee, // mov dl, 0xf8; in al, dx; out dx, al
    0xeb, 0xf1, // jmp again
];

#[test]
#[ignore = "needs: Kvm"]
fn a_guest_is_fed_and_typed_to() {
    type Connect = fn(&mut Pc, Arc<Mutex<SerialPort>>, OwnedFd);
    for (connect, speaks_to_us) in [(Pc::feed_serial as Connect, false), (Pc::type_to_serial, true)] {
        let (send, screen) = channel();
        let (read, mut write) = std::io::pipe().unwrap();
        let mut pc = pc(1);
        let port = pc.add_serial(Box::new(Screen(send))).unwrap();
        connect(&mut pc, port, read.into());
        let ended = boot(&mut pc, &ECHO);
        write.write_all(b"hello\n\x01x\n").unwrap();
        if speaks_to_us {
            assert!(matches!(ended.recv_timeout(WAKE), Ok(Ending::Stopped)), "Ctrl-A x");
        } else {
            expect(&screen, b"hello\n\x01x\n");
        }
    }
}

/// Notes what is read, and then switches the machine off.
const LOOK_AROUND: [u8; 47] = [
    0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000: the first virtio device
    0x8b, 0x03, 0xa3, 0x00, 0x00, 0x10, 0x01, // mov eax, [ebx]; mov [NOTES], eax
    0x8b, 0x43, 0x08, 0xa3, 0x04, 0x00, 0x10, 0x01, // mov eax, [ebx + 8]; mov [NOTES + 4], eax
    0xc7, 0x43, 0x50, 0x00, 0x00, 0x00, 0x00, // mov dword [ebx + 0x50], 0: notifies its queue
    0xe4, 0x61, 0xa2, 0x08, 0x00, 0x10, 0x01, // in al, 0x61; mov [NOTES + 8], al
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, // mov dx, 0x600; mov al, 0x34; out dx, al
    0xf4, 0xeb, 0xfd, // halted: hlt; jmp halted
    0x90, 0x90, 0x90,
];

#[test]
#[ignore = "needs: Kvm"]
fn a_guest_finds_its_devices_and_switches_itself_off() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(512).unwrap();
    let mut pc = pc(2);
    pc.add_disk(Disk::open(image.path(), true, "disk").unwrap()).unwrap();
    assert_eq!(pc.faults().count(), 0);
    let ended = boot(&mut pc, &LOOK_AROUND);
    assert!(matches!(ended.recv_timeout(WAKE), Ok(Ending::PowerOff)));
    let note = |at| pc.memory().device_view().read_obj::<u32>(GuestAddress(NOTES + at)).unwrap();
    assert_eq!([note(0), note(4)], [u32::from_le_bytes(*b"virt"), 2], "a block device");
    // Two bits of the port are always 0 on a PC, and without a device all are 1.
    assert_eq!(note(8) & 0xc0, 0, "the speaker's port");
    assert_eq!(pc.vcpus().len(), 2);
    // The two reads. The notification did not leave KVM.
    let exits = pc.vcpus()[0].with(|fd| {
        let stats = KvmStats::of(fd).unwrap();
        stats.read(stats.index_of("mmio_exits").unwrap()).unwrap()
    });
    assert_eq!(exits.unwrap(), Some(2));
    pc.interrupts[0].1.fail("a ring of sand".to_owned());
    assert_eq!(pc.faults().collect::<Vec<_>>(), [("disk", "a ring of sand".to_owned())]);
}

#[test]
#[ignore = "needs: Kvm"]
fn faults_are_counted() {
    let mut pc = pc(1);
    let _ended = boot(&mut pc, &SPIN);
    let fixed = || pc.fault_counts().expect("KVM counts them since Linux 5.14").fixed;
    let memory = pc.memory().device_view();
    let before = fixed();
    pc.vcpus()[0].with(move |fd| in_ring_3(&memory, fd, &SPIN)).unwrap().unwrap();
    let deadline = Instant::now() + WAKE;
    while fixed() == before {
        assert!(Instant::now() < deadline, "its code is mapped, and no fault is counted");
    }
}

/// A dropped machine calls no hook, and none of its threads runs on.
#[test]
#[ignore = "needs: Kvm"]
fn a_machine_that_is_dropped_is_gone() {
    let mut pc = pc(2);
    let ended = boot(&mut pc, &SPIN);
    let memory = Arc::downgrade(pc.memory());
    drop(pc);
    assert!(memory.upgrade().is_none());
    assert!(ended.try_recv().is_err());
}
