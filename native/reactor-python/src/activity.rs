//! What a Python thread is running, and how to interrupt just that.
//!
//! An interrupt is an asynchronous exception, which Python raises in a thread between two
//! of its instructions. It must hit the job it was meant for and nothing later. So jobs are
//! numbered, and both sides act under the GIL: who interrupts looks whether that very job is
//! running, and a job that ends takes a pending exception back.
//!
//! Native code that sleeps on such a thread sleeps by `std::thread::park`: an interrupt wakes it, and
//! Python raises the exception as soon as it runs an instruction there.
#![allow(unsafe_code)]

use std::ffi::c_long;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;

use pyo3::ffi;
use pyo3::prelude::*;

/// What one Python thread is doing. Only that thread runs jobs; any thread may look, and any
/// thread that is attached may interrupt.
#[derive(Debug, Default)]
pub struct Activity {
    thread: AtomicU64,
    /// The same thread, as Rust knows it.
    sleeper: OnceLock<Thread>,
    /// The number of the last job that began.
    last: AtomicU64,
    running: AtomicBool,
    interrupted: AtomicBool,
}

impl Activity {
    /// Records the calling thread as the one that runs jobs.
    ///
    /// # Errors
    /// Python is out of memory.
    pub fn bind_to_this_thread(&self, py: Python<'_>) -> PyResult<()> {
        let ident = py.import("threading")?.call_method0("get_ident")?;
        self.thread.store(ident.extract()?, Ordering::Release);
        self.sleeper.get_or_init(std::thread::current);
        Ok(())
    }

    /// The number that the next job will have.
    #[must_use]
    pub fn next_job(&self) -> u64 {
        self.last.load(Ordering::Acquire) + 1
    }

    /// The number of the job that is running now.
    #[must_use]
    pub fn current_job(&self) -> Option<u64> {
        self.running
            .load(Ordering::Acquire)
            .then(|| self.last.load(Ordering::Acquire))
    }

    /// Runs a job that may be interrupted.
    pub fn watch<T>(&self, py: Python<'_>, job: impl FnOnce() -> T) -> T {
        self.last.store(self.next_job(), Ordering::Release);
        self.running.store(true, Ordering::Release);
        let result = job();
        self.running.store(false, Ordering::Release);
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

    /// Raises `exception`, a class, in the job with this number, if it is still running. Must
    /// not be called on the thread itself.
    pub fn interrupt(&self, job: u64, exception: &Bound<'_, PyAny>) {
        if self.current_job() != Some(job) {
            return;
        }
        self.interrupted.store(true, Ordering::Release);
        // SAFETY: the token inside `exception` proves that this thread is attached; Python
        // takes its own reference to the class.
        unsafe { ffi::PyThreadState_SetAsyncExc(self.ident(), exception.as_ptr()) };
        if let Some(sleeper) = self.sleeper.get() {
            sleeper.unpark();
        }
    }

    // Python's own type changed sign between versions; the bits are the same.
    #[allow(clippy::cast_possible_wrap)]
    fn ident(&self) -> c_long {
        self.thread.load(Ordering::Acquire) as c_long
    }
}
