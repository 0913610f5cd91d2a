//! ELF images with a PVH entry, made on the spot: guests that misbehave in ways the test guest never would.

/// Where the code is linked.
pub const CODE_GPA: u32 = 0x10_0000;

/// An x86-64 ELF executable whose PVH entry runs these bytes, in 32-bit protected mode without paging.
pub fn image(code: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const NOTE: usize = 4 * 4 + 8;
    const CODE_AT: usize = HEADER + 2 * PROGRAM_HEADER + NOTE;
    let mut image = Vec::new();
    image.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    push(&mut image, &[(2, 2), (62, 2), (1, 4), (CODE_GPA.into(), 8), (HEADER as u64, 8), (0, 8), (0, 4)]);
    push(&mut image, &[(64, 2), (PROGRAM_HEADER as u64, 2), (2, 2), (0, 2), (0, 2), (0, 2)]);
    let note_at = (HEADER + 2 * PROGRAM_HEADER) as u64;
    // PT_LOAD, readable and executable.
    let (at, len, to) = (CODE_AT as u64, code.len() as u64, u64::from(CODE_GPA));
    push(&mut image, &[(1, 4), (5, 4), (at, 8), (to, 8), (to, 8), (len, 8), (len, 8), (4096, 8)]);
    // PT_NOTE.
    push(
        &mut image,
        &[(4, 4), (4, 4), (note_at, 8), (0, 8), (0, 8), (NOTE as u64, 8), (NOTE as u64, 8), (4, 8)],
    );
    push(&mut image, &[(4, 4), (8, 4), (18, 4)]);
    image.extend_from_slice(b"Xen\0");
    push(&mut image, &[(to, 8)]);
    assert_eq!(image.len(), CODE_AT);
    image.extend_from_slice(code);
    image
}

fn push(image: &mut Vec<u8>, fields: &[(u64, usize)]) {
    for (value, bytes) in fields {
        image.extend_from_slice(&value.to_le_bytes()[..*bytes]);
    }
}
