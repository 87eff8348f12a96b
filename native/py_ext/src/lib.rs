//! The native part of the module `_erlang` for plain CPython: the same engine, handler and functions as inside the BEAM, with
//! a server instead of a node.
#![deny(unsafe_code)]

mod node;
mod server;
mod surroundings;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

/// What the package `erlang` is made on, outside the Erlang VM. Private.
// The GIL orders our threads.
#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    watch_forks().map_err(PyOSError::new_err)?;
    node::add_to(module)?;
    module.add_class::<server::Server>()?;
    module.add_class::<server::Listener>()?;
    reactor_python::functions::add_to(module)
}

#[allow(unsafe_code)]
fn watch_forks() -> Result<(), String> {
    // SAFETY: CPython never unloads an extension module, and imports this one once.
    unsafe { reactor_python::forks::watch() }
}
