//! How the guest is linked. Here and not in flags given to this build, so that a change of the
//! linker script links again.

fn main() {
    let architecture = std::env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it for build scripts");
    let script = format!("{}/src/arch/{architecture}/link.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo:rerun-if-changed={script}");
    println!("cargo:rerun-if-changed=build.rs");
    for argument in ["-nostartfiles", "-nostdlib", "-Wl,--build-id=none,-z,norelro,-z,noexecstack"] {
        println!("cargo:rustc-link-arg={argument}");
    }
    println!("cargo:rustc-link-arg=-Wl,-T,{script}");
}
