//! What `erlang.call` asks of native code.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyLookupError, PyTimeoutError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use reactor_python::value::{ConversionError, Types, Value, from_python, to_python};

use super::interpreter::is_forked_child;
use super::module::refuse_in_child;
use crate::functions::{self, Outcome, Refused, Waiting, Wake};

/// Adds the functions to the module `_erlang` of one interpreter.
pub(super) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(function_call, module)?)?;
    module.add_function(wrap_pyfunction!(function_exists, module)?)?;
    module.add_function(wrap_pyfunction!(function_names, module)?)
}

/// Calls a function of Erlang and sleeps, without the GIL, until it answers. `checkpoint` is a Python
/// function, called whenever something else ends the sleep: an interrupt is raised in it.
#[pyfunction]
fn function_call<'py>(
    py: Python<'py>,
    name: &str,
    args: &Bound<'py, PyTuple>,
    timeout_s: Option<f64>,
    checkpoint: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    refuse_in_child()?;
    let deadline = deadline(timeout_s)?;
    let types = Types::load(py)?;
    let values = args
        .iter()
        .map(|arg| from_python(&arg, &types))
        .collect::<Result<Vec<Value>, ConversionError>>()?;
    let waiting = Waiting::send(name.to_owned(), values).map_err(|refused| {
        let reason = match refused {
            Refused::NotRunning => "not_running",
            Refused::Overload => "overload",
        };
        exit(py, reason)
    })?;
    loop {
        match py.detach(|| waiting.sleep(deadline)) {
            Wake::Answer(outcome) => return result(py, name, outcome, &types),
            Wake::Timeout => return Err(timeout_error(name, timeout_s)),
            Wake::Other => drop(checkpoint.call0()?),
        }
    }
}

/// Whether a function of that name is registered. A forked child has none.
#[pyfunction]
fn function_exists(name: &str) -> bool {
    !is_forked_child() && functions::is_name(name)
}

/// The names of all functions.
#[pyfunction]
fn function_names() -> Vec<String> {
    if is_forked_child() {
        Vec::new()
    } else {
        functions::names()
    }
}

/// None is for ever, and so is what a clock cannot tell.
fn deadline(timeout_s: Option<f64>) -> PyResult<Option<Instant>> {
    match timeout_s {
        None => Ok(None),
        Some(seconds) if seconds >= 0.0 => Ok(Duration::try_from_secs_f64(seconds)
            .ok()
            .and_then(|timeout| Instant::now().checked_add(timeout))),
        Some(_) => Err(PyValueError::new_err(
            "a timeout is a number of seconds, 0 or more, or None",
        )),
    }
}

fn timeout_error(name: &str, timeout_s: Option<f64>) -> PyErr {
    let seconds = timeout_s.unwrap_or_default();
    PyTimeoutError::new_err(format!(
        "the Erlang function '{name}' did not answer within {seconds} s"
    ))
}

fn result<'py>(
    py: Python<'py>,
    name: &str,
    outcome: Outcome,
    types: &Types,
) -> PyResult<Bound<'py, PyAny>> {
    match outcome {
        Outcome::Value(value) => to_python(py, &value, types),
        Outcome::Unknown(text) => Err(PyLookupError::new_err(text)),
        Outcome::BadArity(text) => Err(PyTypeError::new_err(text)),
        Outcome::BadArgument(error) => Err(error.into()),
        Outcome::BadResult(error) => Err(bad_result(name, &error)),
        Outcome::Stopped => Err(exit(py, "stopped")),
        Outcome::Raised {
            kind,
            reason,
            text,
            stacktrace,
        } => {
            // A map that no dict can be is told as text too.
            let reason = to_python(py, &reason, types).or_else(|_| {
                let text = Value::Str(text.clone());
                to_python(py, &text, types)
            })?;
            Err(erlang_error(py, (kind, reason, stacktrace, text)))
        }
    }
}

fn bad_result(name: &str, error: &ConversionError) -> PyErr {
    PyTypeError::new_err(format!(
        "the result of the Erlang function '{name}': {error}"
    ))
}

/// The exception of a call that never began, or that lost its process.
fn exit(py: Python<'_>, reason: &str) -> PyErr {
    erlang_error(py, ("exit", reason, "", reason))
}

fn erlang_error<'py>(py: Python<'py>, args: impl pyo3::call::PyCallArgs<'py>) -> PyErr {
    let made = py
        .import("erlang")
        .and_then(|erlang| erlang.getattr("ErlangError"))
        .and_then(|class| class.call1(args));
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
