//! Children that Python code forks: a child has this memory, with whatever locks were held, but none
//! of the other threads, and must never go on with its parent's work.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Has the forks of this process counted, by whatever code they are made. Once is enough.
///
/// # Errors
/// The error number of pthread_atfork.
///
/// # Safety
/// The library that holds this code must never be unloaded.
pub unsafe fn watch() -> Result<(), String> {
    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Release);
    }
    // SAFETY: `in_child` does nothing but an atomic addition, which is allowed after a fork, and
    // the caller keeps its code mapped.
    match unsafe { libc::pthread_atfork(None, None, Some(in_child)) } {
        0 => Ok(()),
        error => Err(format!("pthread_atfork: error {error}")),
    }
}

/// How many forks lie between this process and the one that began to [`watch`]: what was made in
/// another generation belongs to a parent.
#[must_use]
pub fn generation() -> u32 {
    GENERATION.load(Ordering::Acquire)
}

/// Ends the process now: stdio is flushed, no handler runs.
pub fn leave(status: c_int) -> ! {
    // SAFETY: fflush(NULL) flushes every open stream; _exit does not return.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(status)
    }
}
