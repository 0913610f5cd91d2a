//! The test guest as an embedded image, and the built-in scenarios.

/// The bare test guest: an ELF64 executable with a PVH note, linked at `guest_abi::layout::IMAGE_GPA`.
pub static GUEST: &[u8] = include_bytes!(env!("ZAPSCOPE_GUEST"));

macro_rules! scenarios {
    ($($name:literal),+ $(,)?) => {
        /// The built-in scenarios: name and text. The first is what `zapscope run` runs.
        pub static SCENARIOS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../scenarios/", $name, ".toml")))),+];
    };
}

scenarios!["swapout", "eras", "granules", "backings", "zaps", "quirk"];
