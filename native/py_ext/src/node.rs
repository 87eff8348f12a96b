//! What needs an Erlang node, where there is none.

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

/// Adds the functions to the module.
pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    for name in ["send", "whereis", "function_call", "log"] {
        module.add(name, wrap_pyfunction!(nobody, module)?)?;
    }
    module.add_function(wrap_pyfunction!(atom_exists, module)?)?;
    module.add_function(wrap_pyfunction!(function_exists, module)?)?;
    module.add_function(wrap_pyfunction!(function_names, module)?)
}

/// In the place of every function that talks to the node.
#[pyfunction]
#[pyo3(signature = (*_args))]
fn nobody(_args: &Bound<'_, PyTuple>) -> PyResult<()> {
    Err(PyOSError::new_err(
        "there is no Erlang node: this Python does not run inside one",
    ))
}

/// Every atom: what a protocol makes of one is an affair of the node that it will run in.
#[pyfunction]
fn atom_exists(_name: &str) -> bool {
    true
}

#[pyfunction]
fn function_exists(_name: &str) -> bool {
    false
}

#[pyfunction]
fn function_names() -> Vec<String> {
    Vec::new()
}
