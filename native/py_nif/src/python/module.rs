//! The built-in module `_erlang`: what the Python package `erlang` is made on.

use pyo3::exceptions::{PyLookupError, PyOSError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use reactor_python::value::{Types, Value, from_python, to_python};
use rustler::{Encoder, Env, LocalPid, OwnedEnv, Term};

use super::functions;
use super::interpreter::is_forked_child;
use crate::beam::term::{encode, existing_atom};
use crate::log::{Level, log as log_line};

mod atoms {
    rustler::atoms! { py_relay, py_reactor_python }
}

/// Makes the module in the current interpreter, unless it is there already.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let modules = py
        .import("sys")?
        .getattr("modules")?
        .cast_into::<PyDict>()?;
    if let Some(present) = modules.get_item("_erlang")? {
        if present.hasattr(OURS)? {
            return Ok(());
        }
        forget_wheel(&modules)?;
    }
    let module = PyModule::new(py, "_erlang")?;
    module.add_function(wrap_pyfunction!(send, &module)?)?;
    module.add_function(wrap_pyfunction!(whereis, &module)?)?;
    module.add_function(wrap_pyfunction!(atom_exists, &module)?)?;
    module.add_function(wrap_pyfunction!(log, &module)?)?;
    module.add(OURS, true)?;
    functions::add_to(&module)?;
    reactor_python::functions::add_to(&module)?;
    modules.set_item("_erlang", module)
}

/// What tells this module from that of a wheel for plain CPython.
const OURS: &str = "is_inside_the_vm";

/// Something imported an installed wheel of py_reactor while Python started, as a `.pth` file can do: what is
/// imported from now on is of this application.
fn forget_wheel(modules: &Bound<'_, PyDict>) -> PyResult<()> {
    for name in modules.keys() {
        let text = name.to_string();
        let package = text.split('.').next();
        if matches!(package, Some("erlang" | "_erlang")) {
            modules.del_item(name)?;
        }
    }
    Ok(())
}

/// Sends a term to a process, given as Pid or as the name, Atom or str, that it is registered under.
#[pyfunction]
fn send(py: Python<'_>, to: &Bound<'_, PyAny>, term: &Bound<'_, PyAny>) -> PyResult<()> {
    refuse_in_child()?;
    let types = Types::load(py)?;
    let to = from_python(to, &types)?;
    let message = from_python(term, &types)?;
    OwnedEnv::new().run(|env| {
        let message = encode(env, &message)?;
        // A process that is gone gets nothing, which is no error, as in Erlang.
        let _ = match receiver(env, &to)? {
            Receiver::Here(pid) => env.send(&pid, message),
            Receiver::Elsewhere(pid, relay) => env.send(&relay, (atoms::py_relay(), pid, message)),
        };
        Ok(())
    })
}

/// The Pid registered under a name, Atom or str, or None.
#[pyfunction]
fn whereis<'py>(py: Python<'py>, name: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    refuse_in_child()?;
    let types = Types::load(py)?;
    let name = from_python(name, &types)?;
    let pid = OwnedEnv::new().run(|env| -> PyResult<Value> {
        Ok(match registered(env, name_of(&name)?) {
            Some(pid) => Value::Pid(pid.encode(env).to_binary().as_slice().to_vec()),
            None => Value::None,
        })
    })?;
    to_python(py, &pid, &types)
}

/// Whether the atom of that name exists.
#[pyfunction]
fn atom_exists(name: &str) -> PyResult<bool> {
    refuse_in_child()?;
    Ok(OwnedEnv::new().run(|env| existing_atom(env, name).is_some()))
}

/// Hands a log record to OTP's logger. `level` is Python's number.
#[pyfunction]
fn log(
    py: Python<'_>,
    level: i64,
    text: &str,
    logger: String,
    file: String,
    line: String,
    traceback: String,
) {
    let mut metadata = vec![("logger", logger), ("file", file), ("line", line)];
    if !traceback.is_empty() {
        metadata.push(("traceback", traceback));
    }
    let text = text.to_owned();
    py.detach(|| log_line(Level::from_python(level), text, metadata));
}

/// Where a message goes. A NIF can send to processes of its own node only; for the others there is a
/// relay.
enum Receiver<'a> {
    Here(LocalPid),
    Elsewhere(Term<'a>, LocalPid),
}

fn receiver<'a>(env: Env<'a>, to: &Value) -> PyResult<Receiver<'a>> {
    if let Value::Pid(_) = to {
        let pid = encode(env, to)?;
        return match pid.decode() {
            Ok(pid) => Ok(Receiver::Here(pid)),
            Err(_) => env
                .whereis_pid(atoms::py_reactor_python())
                .map(|relay| Receiver::Elsewhere(pid, relay))
                .ok_or_else(|| PyLookupError::new_err("py_reactor is not running")),
        };
    }
    let name = name_of(to)?;
    registered(env, name)
        .map(Receiver::Here)
        .ok_or_else(|| PyLookupError::new_err(format!("no process is registered as {name:?}")))
}

fn name_of(value: &Value) -> PyResult<&str> {
    match value {
        Value::Atom(name) | Value::Str(name) => Ok(name),
        _ => Err(PyTypeError::new_err(
            "a process is a Pid, or the name it is registered under as Atom or str",
        )),
    }
}

fn registered(env: Env<'_>, name: &str) -> Option<LocalPid> {
    env.whereis_pid(existing_atom(env, name)?)
}

/// A forked child has the VM's memory, with whatever locks were held, but not its threads.
pub(super) fn refuse_in_child() -> PyResult<()> {
    if is_forked_child() {
        Err(PyOSError::new_err("a forked child has no Erlang node"))
    } else {
        Ok(())
    }
}
