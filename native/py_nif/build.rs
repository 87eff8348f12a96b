//! Records the Python that this library is built against: the run path of its libpython, without which
//! the loader silently takes whichever it finds first, its program and its version.

fn main() {
    pyo3_build_config::add_libpython_rpath_link_args();
    leave_enif_to_the_vm();
    pyo3_build_config::use_pyo3_cfgs();
    let python = pyo3_build_config::get();
    let program = python.executable().unwrap_or_default();
    println!("cargo:rustc-env=PY_REACTOR_BUILD_PROGRAM={program}");
    let version = python.version();
    let threading = if python.is_free_threaded() { "t" } else { "" };
    println!("cargo:rustc-env=PY_REACTOR_BUILD_VERSION={version}");
    println!("cargo:rustc-env=PY_REACTOR_BUILD_ABI={version}{threading}");
}

/// The `enif_*` functions live in the VM and are found when it loads the library: the linker of macOS must be told.
fn leave_enif_to_the_vm() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-undefined,dynamic_lookup");
    }
}
