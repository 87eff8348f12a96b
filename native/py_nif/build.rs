//! Records the run path of the libpython that this library is built against.
//! Without it the loader silently takes whichever libpython it finds first.

fn main() {
    pyo3_build_config::add_libpython_rpath_link_args();
}
