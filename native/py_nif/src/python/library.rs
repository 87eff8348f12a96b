//! The shared libraries of this process: libpython made visible, ours made permanent, and how the
//! process ends with both loaded.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;

use pyo3::ffi;
use reactor_python::forks;

pub(crate) use reactor_python::forks::leave;

/// Makes libpython's symbols visible to the extension modules that Python will load.
///
/// The BEAM opens its libraries with local symbols, so that `_ssl` or `_ctypes`, which are not linked
/// with libpython, would fail with "undefined symbol". Opening it again changes that for good.
///
/// # Errors
/// What the loader says.
pub(crate) fn promote_libpython() -> Result<(), String> {
    open_again(
        ffi::Py_InitializeEx as *const c_void,
        libc::RTLD_NOW | libc::RTLD_GLOBAL | libc::RTLD_NOLOAD,
    )
    .map_err(|error| format!("cannot make libpython's symbols visible: {error}"))
}

/// Keeps this library mapped for ever: threads of ours run in it and Python never ends.
///
/// # Errors
/// What the loader says.
pub(crate) fn pin() -> Result<(), String> {
    open_again(
        pin as *const c_void,
        libc::RTLD_NOW | libc::RTLD_NODELETE | libc::RTLD_NOLOAD,
    )
    .map_err(|error| format!("cannot pin the library: {error}"))
}

fn open_again(symbol: *const c_void, flags: c_int) -> Result<(), String> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr only looks the address up; it writes `info` and returns 0 if it cannot.
    let found = unsafe { libc::dladdr(symbol, info.as_mut_ptr()) };
    // SAFETY: zeroed above, and all-zero is a Dl_info (null pointers); dladdr may have filled it.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return Err("the loader does not know it".to_owned());
    }
    // SAFETY: `dli_fname` is the loader's own name of a mapped library, which the caller's symbol
    // keeps mapped. The handle is leaked on purpose: closing it would undo nothing and help nobody.
    let handle = unsafe { libc::dlopen(info.dli_fname, flags) };
    if handle.is_null() {
        return Err(last_error());
    }
    Ok(())
}

fn last_error() -> String {
    // SAFETY: dlerror returns null or a string that is valid until this thread's next dl call.
    let message: *const c_char = unsafe { libc::dlerror() };
    if message.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: not null, terminated by the loader, and copied before any other dl call.
    unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned()
}

/// Registers the handler that ends the process before any other exit handler runs.
///
/// `halt` and `init:stop` call `exit(3)` while Python threads may be in C code. The exit handlers and
/// destructors of their libraries would then pull the ground from under them, and most such exits
/// crash. Handlers run last-registered first, and libraries bring handlers of their own, so this is
/// to be called again whenever Python code may have loaded some: it costs a look at a counter unless
/// it did. Call it from any thread but a scheduler, and without the GIL: it takes a lock of the loader.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn guard_exit() {
    use std::sync::atomic::{AtomicU64, Ordering};

    static LIBRARIES_SEEN: AtomicU64 = AtomicU64::new(0);
    let libraries = libraries_loaded();
    if LIBRARIES_SEEN.swap(libraries, Ordering::AcqRel) != libraries {
        // SAFETY: `leave_at_once` lives in this library, which is pinned, and takes these arguments.
        // If there is no memory to register it the exit is as it would be without us.
        unsafe { on_exit(leave_at_once, std::ptr::null_mut()) };
    }
}

/// Without `on_exit` a handler cannot know the exit status, and a wrong status is worse than the
/// small danger of ending under running threads.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn guard_exit() {}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
extern "C" fn leave_at_once(status: c_int, _argument: *mut c_void) {
    leave(status)
}

/// How many libraries the loader has ever loaded.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn libraries_loaded() -> u64 {
    extern "C" fn look(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        count: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes a valid `info`; `count` is the u64 below, alive for the call.
        unsafe { *count.cast::<u64>() = (*info).dlpi_adds };
        1 // The counter is the same for each library: one is enough.
    }
    let mut count = 0_u64;
    // SAFETY: `look` matches the signature and uses `count` only during the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut count).cast()) };
    count
}

/// Has children that Python code forks known, see [`is_forked_child`].
///
/// # Errors
/// A sentence for the operator.
pub(crate) fn watch_forks() -> Result<(), String> {
    // SAFETY: this library is pinned.
    unsafe { forks::watch() }
}

/// True in a child that Python code made with `os.fork`: it has this memory but no VM, no other
/// threads, and must never go on with the parent's work.
pub(crate) fn is_forked_child() -> bool {
    forks::generation() != 0
}
