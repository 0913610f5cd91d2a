//! Whether a file is an executable of this machine's.

use program::input;

/// It is not, but what stands here.
#[derive(Debug, thiserror::Error)]
#[error("the guest kernel is {0}: an x86-64 ELF executable with a PVH note is needed")]
pub struct NotAGuest(pub String);

/// Refuses what is not a little-endian x86-64 ELF executable, by name. (The loader checks neither class nor
/// machine.)
pub fn check(image: &[u8]) -> Result<(), NotAGuest> {
    let refuse = |what: String| Err(NotAGuest(what));
    if image.len() < 64 {
        return refuse(format!("only {} bytes long", image.len()));
    }
    if image[..4] != *b"\x7fELF" {
        return refuse(format!("no ELF file, but {}", input::beginning(image)));
    }
    if image[4] != 2 {
        return refuse("a 32-bit ELF file".to_owned());
    }
    if image[5] != 1 {
        return refuse("a big-endian ELF file".to_owned());
    }
    let half = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
    match half(18) {
        62 => {}
        183 => return refuse("built for Arm (AArch64)".to_owned()),
        243 => return refuse("built for RISC-V".to_owned()),
        other => return refuse(format!("built for ELF machine {other}")),
    }
    match half(16) {
        2 | 3 => Ok(()),
        1 => refuse("an object file, not linked".to_owned()),
        4 => refuse("a core dump".to_owned()),
        other => refuse(format!("of ELF type {other}")),
    }
}
