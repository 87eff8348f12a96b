//! What `erlang.reactor` asks of native code: functions of the module `_erlang`.
//!
//! Each takes the handle of a connection first. Where the connection is over they raise
//! `BrokenPipeError`, so that a loop around `write` ends.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::errno::Errno;
use pyo3::exceptions::{
    PyBlockingIOError, PyBrokenPipeError, PyOSError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyTuple};
use reactor::{
    Action, AdoptError, Descriptor, Flushed, MAX_READ_BYTES, Owner, Received, SendError,
    SlowConsumer,
};

use crate::buffer;
use crate::handle;
use crate::simulation;

/// Adds the functions, and the version that all parts of the project share, to the module `_erlang` of one interpreter.
///
/// # Errors
/// Python is out of memory.
pub fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(connection_read, module)?)?;
    module.add_function(wrap_pyfunction!(connection_write, module)?)?;
    module.add_function(wrap_pyfunction!(connection_flush, module)?)?;
    module.add_function(wrap_pyfunction!(connection_resume, module)?)?;
    module.add_function(wrap_pyfunction!(connection_send, module)?)?;
    module.add_function(wrap_pyfunction!(connection_peer, module)?)?;
    module.add_function(wrap_pyfunction!(connection_open, module)?)?;
    module.add_function(wrap_pyfunction!(connection_close, module)?)?;
    module.add_function(wrap_pyfunction!(connection_id, module)?)?;
    module.add_function(wrap_pyfunction!(connection_set_timeout, module)?)?;
    module.add_function(wrap_pyfunction!(connection_hold_reading, module)?)?;
    module.add_function(wrap_pyfunction!(connection_close_when_idle, module)?)?;
    module.add_function(wrap_pyfunction!(connection_set_slow_consumer, module)?)?;
    simulation::add_to(module)
}

/// Reads at most `size` bytes, and never more than [`MAX_READ_BYTES`].
#[pyfunction]
fn connection_read<'py>(
    py: Python<'py>,
    connection: &Bound<'py, PyAny>,
    size: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    if size == 0 {
        return Err(PyValueError::new_err("size must be at least 1"));
    }
    let Some(descriptor) = handle::descriptor(connection)? else {
        return Ok(PyBytes::new(py, b""));
    };
    let mut buffer = READ_BUFFER.take();
    buffer.resize(MAX_READ_BYTES, 0);
    let size = size.min(MAX_READ_BYTES);
    let data = match descriptor.receive(&mut buffer[..size]) {
        Ok(Received::Data { length, .. } | Received::Datagram { length }) => {
            Ok(PyBytes::new(py, &buffer[..length]))
        }
        Ok(Received::WouldBlock) => Err(PyBlockingIOError::new_err((
            Errno::EAGAIN as i32,
            "nothing to read yet",
        ))),
        Ok(Received::Eof) | Err(_) => Ok(PyBytes::new(py, b"")),
    };
    READ_BUFFER.set(buffer);
    data
}

thread_local! {
    /// Kept, because to fill it with zeros for each read costs more than the read itself.
    static READ_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Hands `data` to the kernel; returns how many bytes it took.
#[pyfunction]
fn connection_write(connection: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
    let descriptor = open(connection)?;
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return send(&descriptor, bytes.as_bytes());
    }
    if let Ok(bytes) = data.cast::<PyByteArray>() {
        return handle::with_bytes(bytes, |bytes| send(&descriptor, bytes));
    }
    handle::with_buffer(data, |bytes| send(&descriptor, bytes))?
}

/// The first failure of a stream is not raised: the engine sees it and closes the
/// connection, whatever the callback goes on to do.
fn send(descriptor: &Descriptor, bytes: &[u8]) -> PyResult<usize> {
    match descriptor.send(bytes) {
        Ok(length) => Ok(length),
        Err(errno) if descriptor.kind().is_datagram() => Err(os_error(errno)),
        Err(_) => Ok(0),
    }
}

/// Sends what is in `buffer` and removes it there; returns whether all is sent.
#[pyfunction]
fn connection_flush(
    connection: &Bound<'_, PyAny>,
    buffer: &Bound<'_, PyByteArray>,
) -> PyResult<bool> {
    match buffer::flush(&*open(connection)?, buffer)? {
        Flushed::All => Ok(true),
        Flushed::Blocked => Ok(false),
        // Closed by the engine in a moment; nothing will be sent any more.
        Flushed::Failed(_) => Ok(true),
    }
}

/// Gives a connection an action from outside its callbacks, from any thread.
#[pyfunction]
fn connection_resume(connection: &Bound<'_, PyAny>, action: &str) -> PyResult<bool> {
    let Some(action) = Action::from_word(action) else {
        return Err(PyValueError::new_err(format!("{action:?} is no action")));
    };
    sent(with_owner(connection, |owner| owner.resume(action))?)
}

/// Has `message_received` called with a message, from any thread.
#[pyfunction]
fn connection_send(connection: &Bound<'_, PyAny>, message: Py<PyAny>) -> PyResult<bool> {
    let link = handle::link(connection)?;
    sent(with_owner(connection, |_| link.send(Box::new(message)))?)
}

/// Whether something got through to the engine; an exception if it could not be kept.
fn sent(result: Option<Result<(), SendError>>) -> PyResult<bool> {
    match result {
        Some(Ok(())) => Ok(true),
        None | Some(Err(SendError::Closed)) => Ok(false),
        Some(Err(error @ SendError::Full)) => Err(PyRuntimeError::new_err(error.to_string())),
    }
}

/// The number of a connection, which no other one ever has.
#[pyfunction]
fn connection_id(connection: &Bound<'_, PyAny>) -> PyResult<u64> {
    Ok(handle::link(connection)?.id())
}

/// Has `timeout_expired` called so many seconds from now; None: not at all.
#[pyfunction]
fn connection_set_timeout(connection: &Bound<'_, PyAny>, seconds: Option<f64>) -> PyResult<()> {
    let timeout = seconds.map(duration).transpose()?;
    with_owner(connection, |owner| owner.set_timeout(timeout))?;
    Ok(())
}

/// A number of seconds, however large.
pub(crate) fn duration(seconds: f64) -> PyResult<Duration> {
    if seconds.is_finite() && seconds >= 0.0 {
        return Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
    Err(PyValueError::new_err(format!(
        "a timeout is a finite number of seconds, 0 or more, or None, not {seconds}"
    )))
}

/// Stops reading, or goes on.
#[pyfunction]
fn connection_hold_reading(connection: &Bound<'_, PyAny>, hold: bool) -> PyResult<()> {
    with_owner(connection, |owner| owner.hold_reading(hold))?;
    Ok(())
}

/// Closes the connection as soon as there is nothing to read and nothing to write.
#[pyfunction]
fn connection_close_when_idle(connection: &Bound<'_, PyAny>) -> PyResult<()> {
    with_owner(connection, Owner::close_when_idle)?;
    Ok(())
}

/// Sets what becomes of pushed messages that the peer does not take.
#[pyfunction]
fn connection_set_slow_consumer(
    connection: &Bound<'_, PyAny>,
    policy: &str,
    messages: Option<usize>,
) -> PyResult<()> {
    let policy = slow_consumer(policy, messages)?;
    with_owner(connection, |owner| owner.set_slow_consumer(policy))?;
    Ok(())
}

/// The policy of this name.
pub(crate) fn slow_consumer(policy: &str, messages: Option<usize>) -> PyResult<SlowConsumer> {
    Ok(match (policy, messages) {
        ("drop_old", None) => SlowConsumer::DropOld,
        ("drop_new", None) => SlowConsumer::DropNew,
        ("disconnect", None) => SlowConsumer::Disconnect,
        ("buffer", Some(messages)) if messages > 0 => SlowConsumer::Buffer(messages),
        ("buffer", _) => {
            return Err(PyValueError::new_err(
                "buffer needs a number of messages, 1 or more",
            ));
        }
        ("drop_old" | "drop_new" | "disconnect", Some(_)) => {
            return Err(PyValueError::new_err(
                "only buffer has a number of messages",
            ));
        }
        _ => {
            return Err(PyValueError::new_err(format!(
                "{policy:?} is none of drop_old, drop_new, buffer and disconnect"
            )));
        }
    })
}

/// Does something with a connection that an engine serves; `None` if it is over.
fn with_owner<T>(
    connection: &Bound<'_, PyAny>,
    work: impl FnOnce(&Owner) -> T,
) -> PyResult<Option<T>> {
    let Some(descriptor) = handle::descriptor(connection)? else {
        return Ok(None);
    };
    match descriptor.owner() {
        Some(owner) => Ok(Some(work(owner))),
        None => Err(PyValueError::new_err("the connection is driven by hand")),
    }
}

/// The address of the peer, or of the sender of the last datagram.
#[pyfunction]
fn connection_peer<'py>(connection: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyTuple>>> {
    match handle::descriptor(connection)?.and_then(|descriptor| descriptor.peer()) {
        Some(address) => buffer::address(connection.py(), &address).map(Some),
        None => Ok(None),
    }
}

/// Duplicates a descriptor that no engine serves. Returns its handle and its kind.
#[pyfunction]
fn connection_open<'py>(py: Python<'py>, fd: RawFd) -> PyResult<(Bound<'py, PyAny>, &'static str)> {
    let descriptor = handle::adopt(fd).map_err(|error| match error {
        AdoptError::BadDescriptor => os_error(Errno::EBADF),
        AdoptError::System(errno) => os_error(errno),
        AdoptError::Unsupported(_) | AdoptError::AlreadyServed => {
            PyValueError::new_err(error.to_string())
        }
    })?;
    let kind = descriptor.kind().name();
    Ok((handle::by_hand(py, &descriptor)?.into_any(), kind))
}

/// Closes what `connection_open` opened.
#[pyfunction]
fn connection_close(connection: &Bound<'_, PyAny>) -> PyResult<()> {
    handle::close(connection)
}

fn open(connection: &Bound<'_, PyAny>) -> PyResult<std::sync::Arc<Descriptor>> {
    match handle::descriptor(connection)? {
        Some(descriptor) if descriptor.fault().is_none() && !descriptor.is_gone() => Ok(descriptor),
        _ => Err(PyBrokenPipeError::new_err((
            Errno::EPIPE as i32,
            "the connection is closed",
        ))),
    }
}

fn os_error(errno: Errno) -> PyErr {
    PyOSError::new_err((errno as i32, errno.desc()))
}
