//! The few instructions that have no name in Rust, and the memory functions that the compiler calls by name.

use core::arch::asm;

use guest_abi::arch::DOORBELL_PORT;

/// Writes a byte to an I/O port. The TSS's I/O bitmap lets ring 3 do so.
pub fn out(port: u16, value: u8) {
    // SAFETY: an I/O write leaves this program's registers and stack as they are. Memory counts as clobbered:
    // the VMM reads and writes the control area meanwhile.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Rings the doorbell and returns when the VMM lets the vCPU go on.
pub fn ring(why: u8) {
    out(DOORBELL_PORT, why);
}

/// Rings the doorbell for the last time.
pub fn ring_forever(why: u8) -> ! {
    loop {
        ring(why);
    }
}

/// # Safety
/// As C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller promises `len` bytes on both sides; the direction flag is clear in this program.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: the caller's promise; copying upwards does not overtake its source.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller's promise; copying downwards does not overtake its source, and the flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// # Safety
/// As C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller promises `len` bytes.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for index in 0..len {
        // SAFETY: the caller promises `len` bytes on both sides. Volatile, so that the compiler does not make
        // this loop a call of itself.
        let (x, y) = unsafe { (a.add(index).read_volatile(), b.add(index).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As C's `bcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, len) }
}
