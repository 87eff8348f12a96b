//! The Python handle of a connection: a capsule that names a descriptor without owning it.
//!
//! A protocol object may outlive its connection, and other threads may hold it. So its
//! handle is weak: when the engine lets a connection go its descriptor is closed at once,
//! whatever Python still refers to. A capsule, unlike a class of ours, belongs to no
//! interpreter in particular.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyCapsule, PyMemoryView};
use reactor::{AdoptError, Descriptor, Link};

const NAME: &CStr = c"py_reactor.connection";

/// What a capsule holds.
struct Handle {
    link: Arc<Link>,
    /// Set for a descriptor that no engine serves: the handle itself keeps it open.
    by_hand: Mutex<Option<Arc<Descriptor>>>,
}

/// Duplicates the descriptor with this number.
pub fn adopt(number: RawFd) -> Result<Arc<Descriptor>, AdoptError> {
    if number < 0 {
        return Err(AdoptError::BadDescriptor);
    }
    // SAFETY: the number is not -1. It is only asked what it is and duplicated, both of which
    // the kernel refuses for a number that is not open.
    Descriptor::adopt(unsafe { BorrowedFd::borrow_raw(number) })
}

/// A handle of a connection, whether it is open or not.
pub(crate) fn linked<'py>(py: Python<'py>, link: &Arc<Link>) -> PyResult<Bound<'py, PyCapsule>> {
    capsule(py, link, None)
}

/// A handle that keeps its descriptor open until [`close`].
pub(crate) fn by_hand<'py>(
    py: Python<'py>,
    descriptor: &Arc<Descriptor>,
) -> PyResult<Bound<'py, PyCapsule>> {
    capsule(py, descriptor.link(), Some(Arc::clone(descriptor)))
}

fn capsule<'py>(
    py: Python<'py>,
    link: &Arc<Link>,
    by_hand: Option<Arc<Descriptor>>,
) -> PyResult<Bound<'py, PyCapsule>> {
    let handle = Handle {
        link: Arc::clone(link),
        by_hand: Mutex::new(by_hand),
    };
    PyCapsule::new_with_value(py, handle, NAME)
}

/// What a handle refers to.
pub(crate) fn link<'a>(object: &'a Bound<'_, PyAny>) -> PyResult<&'a Arc<Link>> {
    Ok(&handle(object)?.link)
}

/// The open descriptor behind a handle, `None` after its end.
pub(crate) fn descriptor(object: &Bound<'_, PyAny>) -> PyResult<Option<Arc<Descriptor>>> {
    Ok(handle(object)?.link.descriptor())
}

/// Closes a descriptor that is driven by hand; one that an engine serves is left alone.
pub(crate) fn close(object: &Bound<'_, PyAny>) -> PyResult<()> {
    let descriptor = handle(object)?.by_hand.lock().take();
    drop(descriptor);
    Ok(())
}

fn handle<'a>(object: &'a Bound<'_, PyAny>) -> PyResult<&'a Handle> {
    if object.is_none() {
        return Err(PyValueError::new_err("the protocol has no connection yet"));
    }
    let capsule = object
        .cast::<PyCapsule>()
        .map_err(|_| PyTypeError::new_err("not the handle of a connection"))?;
    let pointer = capsule
        .pointer_checked(Some(NAME))
        .map_err(|_| PyTypeError::new_err("not the handle of a connection"))?;
    // SAFETY: only `capsule` above makes capsules of this name, each around a `Handle`, which
    // lives as long as the capsule; the result borrows from `object`, which keeps it alive.
    Ok(unsafe { pointer.cast::<Handle>().as_ref() })
}

/// Runs `use_bytes` on the content of a bytearray without copying it.
///
/// `use_bytes` must not run Python code: it could change the bytearray. It gets no token to
/// do so, and the worker stays attached meanwhile.
pub(crate) fn with_bytes<T>(
    buffer: &Bound<'_, PyByteArray>,
    use_bytes: impl FnOnce(&[u8]) -> T,
) -> T {
    // SAFETY: nobody resizes the bytearray while the slice lives: this thread holds the GIL
    // and `use_bytes`, which is one system call, neither runs Python nor lets the GIL go.
    use_bytes(unsafe { buffer.as_bytes() })
}

/// Runs `use_bytes` on the bytes of any buffer, as [`with_bytes`] does.
///
/// What a memoryview shows of bytes or a bytearray is not copied. Other memory, like that of a
/// file, may change under us, GIL or not.
///
/// # Errors
/// It is no buffer of bytes.
pub(crate) fn with_buffer<T>(
    object: &Bound<'_, PyAny>,
    use_bytes: impl FnOnce(&[u8]) -> T,
) -> PyResult<T> {
    let buffer = PyBuffer::<u8>::get(object)?;
    if !buffer.is_c_contiguous() || !shows_bytes(object)? {
        return Ok(use_bytes(&buffer.to_vec(object.py())?));
    }
    let pointer = buffer.buf_ptr().cast::<u8>();
    if pointer.is_null() {
        return Ok(use_bytes(&[]));
    }
    // SAFETY: the buffer is contiguous and has so many bytes, and while we hold it nobody resizes
    // what it belongs to. Nobody writes there either: that is a bytes or a bytearray, this thread
    // holds the GIL, and `use_bytes` is as in `with_bytes`.
    Ok(use_bytes(unsafe {
        std::slice::from_raw_parts(pointer, buffer.len_bytes())
    }))
}

/// Whether it is a memoryview whose memory is that of bytes or a bytearray.
fn shows_bytes(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    if object.cast::<PyMemoryView>().is_err() {
        return Ok(false);
    }
    let base = object.getattr("obj")?;
    Ok(base.is_exact_instance_of::<PyBytes>() || base.is_exact_instance_of::<PyByteArray>())
}
