//! Linker settings of the addon.

fn main() {
    napi_build::setup();
    // Node unloads an addon with the last worker that used it, while our threads still run in it.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
