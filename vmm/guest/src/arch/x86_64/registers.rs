//! A vCPU's registers, and the frame of an exception, in a crash report.

use std::fmt;

use guest_abi::arch::FaultFrame;

/// A vCPU's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the registers' own names")]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub general: [u64; 15],
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
    pub ss: u16,
}

/// Names of [`Registers::general`], in order.
const GENERAL: [&str; 15] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

impl Registers {
    /// Whether they are those after INIT. AMD's processors leave a guest's state undefined at a shutdown, and KVM
    /// resets the vCPU before its registers can be read.
    pub fn are_reset(&self) -> bool {
        (self.cs, self.rip, self.cr0 & 1) == (0xf000, 0xfff0, 0)
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  rip {:#018x}  rsp {:#018x}  rflags {:#x}  cs {:#x}  ss {:#x}",
            self.rip, self.rsp, self.rflags, self.cs, self.ss
        )?;
        for names in GENERAL.iter().zip(self.general).collect::<Vec<_>>().chunks(4) {
            for (name, value) in names {
                write!(f, "  {name:>3} {value:#018x}")?;
            }
            writeln!(f)?;
        }
        write!(
            f,
            "  cr0 {:#x}  cr2 {:#x}  cr3 {:#x}  cr4 {:#x}  efer {:#x}",
            self.cr0, self.cr2, self.cr3, self.cr4, self.efer
        )
    }
}

/// An exception that reached the guest's ring 0, in words.
pub(crate) struct Exception<'a>(pub &'a FaultFrame);

impl fmt::Display for Exception<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FaultFrame { vector, error_code, rip, cr2, .. } = *self.0;
        let name = exception_name(vector);
        write!(f, "exception {vector} ({name}) with error code {error_code:#x} at rip {rip:#x}, cr2 {cr2:#x}")
    }
}

/// The name Intel's manual gives an exception vector.
fn exception_name(vector: u64) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE divide",
        "#DB debug",
        "NMI",
        "#BP breakpoint",
        "#OF overflow",
        "#BR bound",
        "#UD invalid opcode",
        "#NM no FPU",
        "#DF double fault",
        "coprocessor",
        "#TS invalid TSS",
        "#NP not present",
        "#SS stack",
        "#GP general protection",
        "#PF page fault",
        "reserved",
        "#MF FPU",
        "#AC alignment",
        "#MC machine check",
        "#XM SIMD",
        "#VE virtualisation",
        "#CP control protection",
    ];
    NAMES.get(vector as usize).copied().unwrap_or("reserved")
}
