//! Whether a worker is inside a callback, and how to interrupt it there.
//!
//! An interrupt is an asynchronous exception, which Python raises in a thread between two
//! of its instructions. It must hit the callback it was meant for and nothing later, so
//! both sides act under the GIL: who interrupts looks whether a callback is running, and
//! a callback that ends takes a pending exception back.
#![allow(unsafe_code)]

use std::ffi::c_long;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pyo3::ffi;
use pyo3::prelude::*;

/// What one worker thread is doing.
#[derive(Debug, Default)]
pub struct Activity {
    thread: AtomicU64,
    in_callback: AtomicBool,
    interrupted: AtomicBool,
}

impl Activity {
    /// Records the calling thread as the one to interrupt.
    pub(crate) fn bind_to_this_thread(&self, py: Python<'_>) -> PyResult<()> {
        let ident = py.import("threading")?.call_method0("get_ident")?;
        self.thread.store(ident.extract()?, Ordering::Release);
        Ok(())
    }

    /// Runs a callback that may be interrupted.
    pub(crate) fn watch<T>(&self, py: Python<'_>, callback: impl FnOnce() -> T) -> T {
        self.in_callback.store(true, Ordering::Release);
        let result = callback();
        self.in_callback.store(false, Ordering::Release);
        if self.interrupted.load(Ordering::Acquire) {
            self.take_back(py);
        }
        result
    }

    #[cold]
    fn take_back(&self, _attached: Python<'_>) {
        self.interrupted.store(false, Ordering::Release);
        // SAFETY: this thread is attached; a null exception clears a pending one.
        unsafe { ffi::PyThreadState_SetAsyncExc(self.ident(), std::ptr::null_mut()) };
    }

    /// Raises `exception`, a class, in the callback that is running now. Returns whether
    /// there was one. Must not be called on the worker's own thread.
    pub fn interrupt(&self, exception: &Bound<'_, PyAny>) -> bool {
        if !self.in_callback.load(Ordering::Acquire) {
            return false;
        }
        self.interrupted.store(true, Ordering::Release);
        // SAFETY: the token inside `exception` proves that this thread is attached; Python
        // takes its own reference to the class.
        unsafe { ffi::PyThreadState_SetAsyncExc(self.ident(), exception.as_ptr()) == 1 }
    }

    // Python's own type changed sign between versions; the bits are the same.
    #[allow(clippy::cast_possible_wrap)]
    fn ident(&self) -> c_long {
        self.thread.load(Ordering::Acquire) as c_long
    }
}
