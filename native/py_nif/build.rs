//! Records the Python that this library is built against: the run path of its libpython, without which
//! the loader silently takes whichever it finds first, its program and its version.

fn main() {
    pyo3_build_config::add_libpython_rpath_link_args();
    pyo3_build_config::use_pyo3_cfgs();
    let python = pyo3_build_config::get();
    let program = python.executable().unwrap_or_default();
    println!("cargo:rustc-env=PY_REACTOR_BUILD_PROGRAM={program}");
    let version = python.version();
    let threading = if python.is_free_threaded() { "t" } else { "" };
    println!("cargo:rustc-env=PY_REACTOR_BUILD_VERSION={version}");
    println!("cargo:rustc-env=PY_REACTOR_BUILD_ABI={version}{threading}");
}
