//! The program that runs at each `kvm_unmap_hva_range`, assembled instruction by instruction: it is short, so that no BPF
//! compiler is needed.
//!
//! ```text
//!   if end <= near.start || start >= near.end: return                  another process's addresses
//!   buffer = buffers[cpu]
//!   if buffer.head - buffer.tail >= slots: buffer.lost += 1; return    it does not fit
//!   buffer.slots[buffer.head % slots] = { now, thread, start, end }
//!   buffer.head += 1                                                   the slot is published
//!   if buffer.head % (slots / 2) == 0: write to the wakeup ring        another half is full
//! ```
//!
//! The kernel does not run it twice at once on a CPU, so each buffer has one writer.

use std::os::fd::{AsRawFd, BorrowedFd};

use guest_mem::HvaRange;

use super::buffers::{HEAD, LOST, SLOT, SLOTS, TAIL};
use crate::arch::STORE_RELEASE;
use crate::filter::everywhere;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Insn {
    code: u8,
    /// The source's number in the upper half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register. A call returns in `R0`, takes its arguments from `R1` to `R5`, and clobbers these.
#[derive(Clone, Copy)]
struct R(u8);

const R0: R = R(0);
const R1: R = R(1);
const R2: R = R(2);
const R3: R = R(3);
const R4: R = R(4);
const BUFFER: R = R(6);
const START: R = R(7);
const END: R = R(8);
/// The address of the slot, once start and end are stored.
const PLACE: R = START;
const AT: R = R(9);
const STACK: R = R(10);

// Classes, sizes and operations of instructions.
const LD_IMM64: u8 = 0x18;
const LDX: u8 = 0x79;
const STX: u8 = 0x7b;
const STX_WORD: u8 = 0x63;
const ST: u8 = 0x7a;
const ADD: u8 = 0x07;
const SUB: u8 = 0x17;
const AND: u8 = 0x57;
const SHIFT_LEFT: u8 = 0x67;
const MOVE: u8 = 0xb7;
/// Flag of an operation or a jump: the operand is a register.
const REGISTER: u8 = 0x08;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT_BELOW: u8 = 0x35;
const JUMP_IF_NOT: u8 = 0x55;
const JUMP_IF_NOT_ABOVE: u8 = 0xb5;
const JUMP: u8 = 0x05;
/// In an `LD_IMM64`: the number is the descriptor of a map.
const MAP: R = R(1);

// Helpers of the kernel.
const MAP_LOOKUP_ELEM: i32 = 1;
const KTIME_GET_NS: i32 = 5;
const GET_SMP_PROCESSOR_ID: i32 = 8;
const GET_CURRENT_PID_TGID: i32 = 14;
const RINGBUF_OUTPUT: i32 = 130;

/// A program under construction.
#[derive(Default)]
struct Assembler {
    insns: Vec<Insn>,
}

/// A jump whose target is not known yet.
#[must_use]
struct Jump(usize);

impl Assembler {
    fn put(&mut self, code: u8, to: R, from: R, offset: i16, immediate: i32) {
        self.insns.push(Insn { code, registers: from.0 << 4 | to.0, offset, immediate });
    }

    fn set(&mut self, to: R, number: i32) {
        self.put(MOVE, to, R0, 0, number);
    }

    fn copy(&mut self, to: R, from: R) {
        self.put(MOVE | REGISTER, to, from, 0, 0);
    }

    fn with(&mut self, operation: u8, to: R, number: i32) {
        self.put(operation, to, R0, 0, number);
    }

    fn with_register(&mut self, operation: u8, to: R, from: R) {
        self.put(operation | REGISTER, to, from, 0, 0);
    }

    /// Loads a number of 64 bits, by two instructions.
    fn wide(&mut self, to: R, kind: R, number: u64) {
        self.put(LD_IMM64, to, kind, 0, number as u32 as i32);
        self.put(0, R0, R0, 0, (number >> 32) as i32);
    }

    fn map(&mut self, to: R, map: BorrowedFd<'_>) {
        self.wide(to, MAP, map.as_raw_fd() as u64);
    }

    fn load(&mut self, to: R, base: R, offset: i16) {
        self.put(LDX, to, base, offset, 0);
    }

    fn store(&mut self, base: R, offset: i16, from: R) {
        self.put(STX, base, from, offset, 0);
    }

    /// Stores behind all earlier stores. `from` has no defined value afterwards.
    fn publish(&mut self, base: R, offset: i16, from: R) {
        let (code, immediate) = STORE_RELEASE;
        self.put(code, base, from, offset, immediate);
    }

    fn call(&mut self, helper: i32) {
        self.put(CALL, R0, R0, 0, helper);
    }

    fn end(&mut self) {
        self.set(R0, 0);
        self.put(EXIT, R0, R0, 0, 0);
    }

    fn jump(&mut self, code: u8, left: R, right: R, number: i32) -> Jump {
        self.put(code, left, right, 0, number);
        Jump(self.insns.len() - 1)
    }

    /// Jumps if the range from START to END does not meet `near`.
    fn jumps_outside(&mut self, near: HvaRange) -> Vec<Jump> {
        if near == everywhere() {
            return Vec::new();
        }
        self.wide(R2, R0, near.start().get());
        let below = self.jump(JUMP_IF_NOT_ABOVE | REGISTER, END, R2, 0);
        self.wide(R2, R0, near.end().get());
        vec![below, self.jump(JUMP_IF_NOT_BELOW | REGISTER, START, R2, 0)]
    }

    /// Writes to the wakeup ring. The content does not matter; the write fails if the ring is full, and then the reader is woken
    /// already.
    fn wake(&mut self, wakeup: BorrowedFd<'_>) {
        self.put(ST, STACK, R0, -8, 0);
        self.map(R1, wakeup);
        self.copy(R2, STACK);
        self.with(ADD, R2, -8);
        self.set(R3, 8);
        self.set(R4, 0);
        self.call(RINGBUF_OUTPUT);
    }

    /// Sets the target of the jumps to the next instruction.
    fn land(&mut self, jumps: impl IntoIterator<Item = Jump>) {
        for Jump(from) in jumps {
            self.insns[from].offset = (self.insns.len() - from - 1) as i16;
        }
    }
}

/// The shortest program.
pub(super) fn that_does_nothing() -> Vec<Insn> {
    let mut a = Assembler::default();
    a.end();
    a.insns
}

/// The program for `buffers` of so many slots each, a power of two, and ranges that meet `near`.
pub(super) fn assemble(
    buffers: BorrowedFd<'_>,
    wakeup: BorrowedFd<'_>,
    slots: u32,
    near: HvaRange,
) -> Vec<Insn> {
    assert!(slots.is_power_of_two() && slots >= 2);
    let mut a = Assembler::default();
    let mut out = Vec::new();
    // The context has the tracepoint's arguments.
    a.load(START, R1, 0);
    a.load(END, R1, 8);
    out.extend(a.jumps_outside(near));

    a.call(GET_SMP_PROCESSOR_ID);
    a.put(STX_WORD, STACK, R0, -4, 0);
    a.map(R1, buffers);
    a.copy(R2, STACK);
    a.with(ADD, R2, -4);
    a.call(MAP_LOOKUP_ELEM);
    out.push(a.jump(JUMP_IF_EQUAL, R0, R0, 0));
    a.copy(BUFFER, R0);

    a.load(AT, BUFFER, HEAD as i16);
    a.load(R1, BUFFER, TAIL as i16);
    a.copy(R2, AT);
    a.with_register(SUB, R2, R1);
    let full = a.jump(JUMP_IF_NOT_BELOW, R2, R0, slots as i32);

    a.copy(R1, AT);
    a.with(AND, R1, slots as i32 - 1);
    a.with(SHIFT_LEFT, R1, SLOT.ilog2() as i32);
    a.with_register(ADD, R1, BUFFER);
    const WORDS: [i16; 4] = [SLOTS as i16, SLOTS as i16 + 8, SLOTS as i16 + 16, SLOTS as i16 + 24];
    a.store(R1, WORDS[2], START);
    a.store(R1, WORDS[3], END);
    a.copy(PLACE, R1);
    a.call(KTIME_GET_NS);
    a.store(PLACE, WORDS[0], R0);
    a.call(GET_CURRENT_PID_TGID);
    a.store(PLACE, WORDS[1], R0);

    a.with(ADD, AT, 1);
    a.copy(R1, AT);
    a.publish(BUFFER, HEAD as i16, R1);
    a.with(AND, AT, slots as i32 / 2 - 1);
    out.push(a.jump(JUMP_IF_NOT, AT, R0, 0));
    a.wake(wakeup);
    out.push(a.jump(JUMP, R0, R0, 0));

    a.land([full]);
    a.load(R1, BUFFER, LOST as i16);
    a.with(ADD, R1, 1);
    a.store(BUFFER, LOST as i16, R1);
    a.land(out);
    a.end();
    a.insns
}
