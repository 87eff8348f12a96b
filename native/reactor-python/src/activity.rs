//! What a Python thread is running, and how to interrupt just that.
//!
//! An interrupt is an asynchronous exception, which Python raises in a thread between two
//! of its instructions. It must hit the job it was meant for and nothing later. So jobs are
//! numbered, and both sides act under the GIL: who interrupts looks whether that very job is
//! running, and a job that ends takes a pending exception back.
//!
//! Native code that sleeps on such a thread sleeps by `std::thread::park`: an interrupt wakes it, and
//! Python raises the exception as soon as it runs an instruction there.
//!
//! How long the present job has been running and which callback it is in any thread may ask,
//! without the GIL. Whose callback, and where in it, is told to a thread that has the GIL.
#![allow(unsafe_code)]

use std::ffi::c_long;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};
use reactor::Descriptor;

use crate::names::Callback;
use crate::stack::{self, Frame};

/// What one Python thread is doing. Only that thread runs jobs; any thread may look, and any
/// thread that is attached may interrupt.
pub struct Activity {
    thread: AtomicU64,
    /// The same thread, as Rust knows it.
    sleeper: OnceLock<Thread>,
    /// When the last job began, by the clock of [`monotonic_nanos`].
    began: AtomicU64,
    /// The number of the last job that began.
    last: AtomicU64,
    running: AtomicBool,
    interrupted: AtomicBool,
    /// The callback within the job, as [`Place::pack`] has it; 0 between callbacks.
    place: AtomicU64,
    /// Whose callback it is: on the stack of `during`, null between callbacks.
    subject: AtomicPtr<Subject>,
    /// Whether somebody wants to be told of the next job that begins.
    awaited: AtomicBool,
    notice: Mutex<Option<Notice>>,
}

type Notice = Box<dyn FnOnce() + Send>;

/// What a callback is about, borrowed from the worker for as long as it runs.
#[derive(Debug)]
struct Subject {
    protocol: *mut ffi::PyObject,
    descriptor: *const Descriptor,
}

/// A job, seen from outside without the GIL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// Its number.
    pub job: u64,
    /// How long it has been running.
    pub age: Duration,
    /// Which callback it is in; None if it is between callbacks.
    pub place: Option<Place>,
}

/// A callback of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its name; `factory` for what makes the protocol.
    pub callback: &'static str,
    /// The number of the descriptor.
    pub fd: u32,
}

impl Place {
    fn pack(callback: Option<Callback>, descriptor: &Descriptor) -> u64 {
        let callback = callback.map_or(1, |callback| callback as u64 + 2);
        callback << 32 | u64::from(descriptor.number().unsigned_abs())
    }

    // The halves are what they were before they were packed.
    #[allow(clippy::cast_possible_truncation)]
    fn unpack(packed: u64) -> Option<Self> {
        let callback = match packed >> 32 {
            0 => return None,
            1 => "factory",
            callback => Callback::ALL.get(callback as usize - 2)?.name(),
        };
        let fd = packed as u32;
        Some(Self { callback, fd })
    }
}

/// When a job began and when it ended, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    began: u64,
    ended: u64,
}

impl Span {
    pub(crate) const fn nanos(self) -> u64 {
        self.ended.saturating_sub(self.began)
    }
}

/// A job that runs, seen with the GIL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What can be seen without it.
    pub glance: Glance,
    /// The class of the protocol, or what makes protocols; `?` between callbacks.
    pub protocol: String,
    /// The address of the peer, as text.
    pub peer: String,
    frames: Vec<Frame>,
}

impl Look {
    /// Where it is, as a traceback has it, outermost frame first. Reads the files with the source:
    /// not to be called with the GIL.
    #[must_use]
    pub fn stack(&self) -> String {
        stack::format(&self.frames)
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            thread: AtomicU64::default(),
            sleeper: OnceLock::new(),
            began: AtomicU64::default(),
            last: AtomicU64::default(),
            running: AtomicBool::default(),
            interrupted: AtomicBool::default(),
            place: AtomicU64::default(),
            subject: AtomicPtr::default(),
            awaited: AtomicBool::default(),
            notice: Mutex::default(),
        }
    }
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

    /// The job that is running now.
    ///
    /// A job that begins meanwhile is never taken for older than it is: its beginning is written
    /// before its number, and read after it.
    #[must_use]
    pub fn glance(&self) -> Option<Glance> {
        let job = self.last.load(Ordering::Acquire);
        let age = self.elapsed();
        let place = Place::unpack(self.place.load(Ordering::Acquire));
        let glance = Glance { job, age, place };
        (self.current_job() == Some(job)).then_some(glance)
    }

    /// Has `notice` called, on the thread itself, when the next job begins, or at once if one is
    /// running. It takes the place of an earlier one that was not called yet.
    ///
    /// A job that begins in this very moment may be missed: not to miss it would cost each job a
    /// memory fence. Who depends on it looks now and then.
    pub fn when_busy(&self, notice: impl FnOnce() + Send + 'static) {
        *self.notice.lock() = Some(Box::new(notice));
        self.awaited.store(true, Ordering::SeqCst);
        if self.running.load(Ordering::SeqCst) {
            self.give_notice();
        }
    }

    #[cold]
    fn give_notice(&self) {
        self.awaited.store(false, Ordering::Relaxed);
        let notice = self.notice.lock().take();
        if let Some(notice) = notice {
            notice();
        }
    }

    /// Looks at the job with this number, if it is still running. Must not be called on the
    /// thread itself. Runs none of the user's code.
    ///
    /// # Errors
    /// Python is out of memory.
    pub fn look(&self, py: Python<'_>, job: u64) -> PyResult<Option<Look>> {
        let Some(glance) = self.glance().filter(|glance| glance.job == job) else {
            return Ok(None);
        };
        let frames = stack::frames(py, self.thread.load(Ordering::Acquire))?;
        let (protocol, peer) = self.subject(py);
        Ok(Some(Look {
            glance,
            protocol,
            peer,
            frames,
        }))
    }

    /// The class of the protocol whose callback is running, and its peer.
    fn subject(&self, py: Python<'_>) -> (String, String) {
        // SAFETY: the pointer is null or leads to the `Subject` on the stack of `during`, which
        // sets it back to null before it returns. It needs the GIL for that, which is here.
        let Some(subject) = (unsafe { self.subject.load(Ordering::Acquire).as_ref() }) else {
            return ("?".to_owned(), String::new());
        };
        // SAFETY: for the same reason what `during` has borrowed is still borrowed.
        let (protocol, descriptor) = unsafe {
            (
                Bound::from_borrowed_ptr(py, subject.protocol),
                &*subject.descriptor,
            )
        };
        // First of all: a metaclass may make `__module__` a property, and once code of the user runs
        // the other thread may too, and the descriptor go.
        let peer = descriptor.peer();
        let peer = peer.map_or_else(String::new, |peer| peer.to_string());
        let class = match protocol.cast::<PyType>() {
            Ok(class) => plain_name(class),
            Err(_) => plain_name(&protocol.get_type()),
        };
        (class, peer)
    }

    /// Runs a callback within a job: of a protocol, or None for what makes one.
    pub(crate) fn during<T>(
        &self,
        callback: Option<Callback>,
        protocol: &Bound<'_, PyAny>,
        descriptor: &Descriptor,
        run: impl FnOnce() -> T,
    ) -> T {
        let mut subject = Subject {
            protocol: protocol.as_ptr(),
            descriptor,
        };
        let _end = Between(self);
        self.place
            .store(Place::pack(callback, descriptor), Ordering::Relaxed);
        self.subject.store(&raw mut subject, Ordering::Release);
        run()
    }

    /// The time since the last job began.
    fn elapsed(&self) -> Duration {
        Duration::from_nanos(monotonic_nanos().saturating_sub(self.began.load(Ordering::Acquire)))
    }

    /// Runs a job that may be interrupted. One that follows another `at once` is taken to begin
    /// when that ended: to ask for the time costs as much as a small callback does.
    pub fn watch<T>(
        &self,
        py: Python<'_>,
        at_once: Option<Span>,
        job: impl FnOnce() -> T,
    ) -> (T, Span) {
        let began = at_once.map_or_else(monotonic_nanos, |span| span.ended);
        self.began.store(began, Ordering::Release);
        self.last.store(self.next_job(), Ordering::Release);
        self.running.store(true, Ordering::Release);
        if self.awaited.load(Ordering::Relaxed) {
            self.give_notice();
        }
        let result = job();
        self.running.store(false, Ordering::Release);
        if self.interrupted.load(Ordering::Acquire) {
            self.take_back(py);
        }
        let ended = monotonic_nanos();
        (result, Span { began, ended })
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

/// Nanoseconds of a clock that is never set. Like `std::time::Instant`, without its arithmetic.
// Five centuries fit; a clock that is there does not fail.
#[allow(clippy::cast_sign_loss)]
fn monotonic_nanos() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}

/// Between callbacks again, also after a panic. Declared after the subject, it is dropped before.
struct Between<'a>(&'a Activity);

impl Drop for Between<'_> {
    fn drop(&mut self) {
        self.0.subject.store(ptr::null_mut(), Ordering::Release);
        self.0.place.store(0, Ordering::Relaxed);
    }
}

/// The name of a class with its module, without asking its metaclass, which may be the user's.
fn plain_name(class: &Bound<'_, PyType>) -> String {
    let name = class.qualname();
    let name = name.map_or_else(|_| "?".to_owned(), |name| name.to_string());
    let plain = class.py().get_type::<PyType>();
    let module = plain.call_method1("__getattribute__", (class, "__module__"));
    match module.as_ref().map(|module| module.cast::<PyString>()) {
        Ok(Ok(module)) if module != "builtins" => format!("{module}.{name}"),
        _ => name,
    }
}
