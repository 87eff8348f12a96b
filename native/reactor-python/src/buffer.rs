//! Small conversions between what the engine has and what Python sees.

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PySlice, PyTuple};
use reactor::{Address, Descriptor, Flushed, Reason};

use crate::handle;

/// Sends a bytearray and removes from it what the kernel took. A datagram socket sends
/// the whole of it as one datagram.
pub(crate) fn flush(descriptor: &Descriptor, buffer: &Bound<'_, PyByteArray>) -> PyResult<Flushed> {
    let length = buffer.len();
    if length == 0 {
        return Ok(Flushed::All);
    }
    match handle::with_bytes(buffer, |bytes| descriptor.send(bytes)) {
        Ok(sent) if sent == length => {
            buffer.resize(0)?;
            Ok(Flushed::All)
        }
        Ok(0) => Ok(Flushed::Blocked),
        Ok(sent) => {
            // A bytearray gives up its front without moving the rest.
            let sent = isize::try_from(sent).unwrap_or(isize::MAX);
            buffer.del_item(PySlice::new(buffer.py(), 0, sent, 1))?;
            Ok(Flushed::Blocked)
        }
        Err(errno) => Ok(Flushed::Failed(Reason::Failed(errno))),
    }
}

/// An address as Python's `socket` module has it; a Unix path in a tuple of its own.
///
/// # Errors
/// Python is out of memory.
pub fn address<'py>(py: Python<'py>, address: &Address) -> PyResult<Bound<'py, PyTuple>> {
    match address {
        Address::Inet(std::net::SocketAddr::V4(v4)) => {
            (v4.ip().to_string(), v4.port()).into_pyobject(py)
        }
        Address::Inet(std::net::SocketAddr::V6(v6)) => {
            (v6.ip().to_string(), v6.port(), v6.flowinfo(), v6.scope_id()).into_pyobject(py)
        }
        Address::Unix(path) => (path.as_os_str(),).into_pyobject(py),
    }
}
