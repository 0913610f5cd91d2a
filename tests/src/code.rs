//! Machine code for kernels of a few instructions, in 64-bit mode, by polling: no interrupts, no tables, no memory
//! but their own.

/// What ends the input of [`echo`]: EOT.
pub const END_OF_INPUT: u8 = 4;

/// Writes `text` to COM1 and goes on behind it.
pub fn say(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    let skip = i32::try_from(text.len() + 1).expect("a short text");
    let mut code = vec![
        0x48, 0x8d, 0x35, 0x10, 0, 0, 0, // lea rsi, [rip + 16]: the text
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz done
        0xee, // out dx, al
        0xeb, 0xf8, // jmp next
    ];
    // done: jmp over the text
    code.push(0xe9);
    code.extend(skip.to_le_bytes());
    code[3] = u8::try_from(code.len() - 7).expect("few instructions");
    code.extend(text);
    code.push(0);
    code
}

/// Writes a byte to a port, then halts for ever.
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    let mut code = vec![
        0x66, 0xba, low, high, // mov dx, port
        0xb0, value, // mov al, value
        0xee,  // out dx, al
    ];
    code.extend(halt());
    code
}

/// ACPI's S5, by the sleep control register of a hardware-reduced machine.
pub fn power_off() -> Vec<u8> {
    out(0x600, 0x34)
}

/// Halts with interrupts off, for ever.
pub fn halt() -> Vec<u8> {
    // hlt; jmp to it
    vec![0xf4, 0xeb, 0xfd]
}

/// Runs in a circle for ever.
pub fn spin() -> Vec<u8> {
    vec![0xeb, 0xfe]
}

/// Prints on COM1 for ever.
pub fn chatter() -> Vec<u8> {
    vec![
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xb0, b'x', // next: mov al, 'x'
        0xee, // out dx, al
        0xeb, 0xfb, // jmp next
    ]
}

/// Takes an exception without an interrupt table: a triple fault.
pub fn triple_fault() -> Vec<u8> {
    let mut code = vec![
        0x0f, 0x01, 0x1d, 2, 0, 0, 0, // lidt [rip + 2]: an empty table
        0x0f, 0x0b, // ud2
    ];
    code.extend([0; 10]);
    code
}

/// Sends back what comes in on COM1 up to [`END_OF_INPUT`], then switches itself off.
pub fn echo() -> Vec<u8> {
    let mut code = vec![
        0x66, 0xba, 0xfd, 0x03, // next: mov dx, 0x3fd (LSR)
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1 (data ready)
        0x74, 0xf7, // jz next
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8 (RBR, THR)
        0xec, // in al, dx
        0x3c, 0x04, // cmp al, END_OF_INPUT
        0x74, 0x03, // je done
        0xee, // out dx, al
        0xeb, 0xeb, // jmp next
    ];
    code.extend(power_off());
    code
}
