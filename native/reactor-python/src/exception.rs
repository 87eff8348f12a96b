//! Python exceptions as text, for people and for Erlang.

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTraceback, PyType};

/// The most of a message or traceback that is kept.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// An exception, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The name of its class; with its module, unless that is `builtins`.
    pub class: String,
    /// What `str()` says of it.
    pub message: String,
    /// The traceback as the interpreter would print it.
    pub traceback: String,
}

/// Describes any exception, also one that cannot be printed.
#[must_use]
pub fn describe(py: Python<'_>, error: &PyErr) -> Description {
    let class = class_name(&error.get_type(py));
    let text = error.value(py).str();
    let message = match &text {
        Ok(text) => lossy(text),
        Err(_) => format!("<unprintable {class} object>"),
    };
    let message = shorten(message);
    let summary = format!("{class}: {message}");
    // Who could not print itself is not asked again: it may have been an endless loop.
    let traceback = match text {
        Ok(_) => traceback(py, error, &summary),
        Err(_) => where_raised(py, error.traceback(py), &summary),
    };
    Description {
        class,
        message,
        traceback: shorten(traceback),
    }
}

/// The name of a class, with its module unless that is `builtins`; `?` where a metaclass
/// hides it.
#[must_use]
pub fn class_name(class: &Bound<'_, PyType>) -> String {
    let part = |name: &str| {
        let value = class.getattr(name).ok()?;
        value.cast::<PyString>().ok().map(lossy)
    };
    let name = part("__qualname__").unwrap_or_else(|| "?".to_owned());
    match part("__module__") {
        Some(module) if module != "builtins" => format!("{module}.{name}"),
        _ => name,
    }
}

/// The lines of the interpreter. They ask the exception for its causes and notes, which are
/// the user's code; if that fails, where it was raised is told without them.
fn traceback(py: Python<'_>, error: &PyErr, summary: &str) -> String {
    // Before Python 3.12 an exception that nobody caught in Python does not know its
    // traceback yet, so that is passed along.
    let (class, value, trace) = (error.get_type(py), error.value(py), error.traceback(py));
    joined(py, "format_exception", (class, value, &trace))
        .unwrap_or_else(|_| where_raised(py, trace, summary))
}

fn where_raised(py: Python<'_>, trace: Option<Bound<'_, PyTraceback>>, summary: &str) -> String {
    let lines = joined(py, "format_tb", (trace,)).unwrap_or_default();
    format!("Traceback (most recent call last):\n{lines}{summary}\n")
}

/// What a function of the module `traceback` makes, as one text.
fn joined<'py>(
    py: Python<'py>,
    function: &str,
    arguments: impl PyCallArgs<'py>,
) -> PyResult<String> {
    let lines = py.import("traceback")?.call_method1(function, arguments)?;
    let text = PyString::new(py, "").call_method1("join", (lines,))?;
    Ok(lossy(text.cast::<PyString>()?))
}

fn lossy(text: &Bound<'_, PyString>) -> String {
    text.to_string_lossy().into_owned()
}

/// Keeps the beginning and the end: the end says what happened, the beginning where.
fn shorten(text: String) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text;
    }
    let head = text.floor_char_boundary(MAX_TEXT_BYTES / 2);
    let tail = text.ceil_char_boundary(text.len() - MAX_TEXT_BYTES / 2);
    format!(
        "{}\n... ({} bytes left out) ...\n{}",
        &text[..head],
        tail - head,
        &text[tail..]
    )
}
