//! Whether libpython is linked is pyo3's affair: maturin sets `PYO3_BUILD_EXTENSION_MODULE`, and it is not. A cargo
//! feature would do the same to every crate of the workspace, and the NIF needs libpython.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
