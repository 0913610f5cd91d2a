//! How the guest is linked. Here and not in the flags of whoever starts this build, so that a change of the
//! linker script links again.

fn main() {
    println!("cargo:rerun-if-changed=src/arch/x86_64/link.ld");
    println!("cargo:rerun-if-changed=build.rs");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/arch/x86_64/link.ld");
    for argument in ["-nostartfiles", "-nostdlib", "-Wl,--build-id=none,-z,norelro,-z,noexecstack"] {
        println!("cargo:rustc-link-arg={argument}");
    }
    println!("cargo:rustc-link-arg=-Wl,-T,{script}");
}
