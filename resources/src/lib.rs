//! The programs that run inside guests, and the built-in scenarios.

/// The bare test guest: an ELF64 executable with a PVH note, linked at `guest_abi::layout::IMAGE_GPA`.
pub static GUEST: &[u8] = include_bytes!(env!("ZAPSCOPE_GUEST"));

/// The agent: a static ELF64 executable for Linux, to be `/init` of a guest's initramfs.
pub static AGENT: &[u8] = include_bytes!(env!("ZAPSCOPE_AGENT"));

macro_rules! scenarios {
    ($($name:literal),+ $(,)?) => {
        /// The built-in scenarios: name and text. The first is what `zapscope run` runs.
        pub static SCENARIOS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../scenarios/", $name, ".toml")))),+];
    };
}

scenarios!["swapout", "eras", "granules", "backings", "zaps", "quirk", "swaps"];
