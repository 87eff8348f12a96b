//! What stays between two calls from Python though it holds Python objects: a simulation.
//!
//! An engine with Python protocols is bound to the time for which its thread is attached, which
//! the compiler knows as the lifetime `'py`. A worker is attached for as long as its engine
//! lives; a simulation is not, it goes on from one call to the next. So it lies in a capsule, and
//! the lifetime is put aside until the next call lends it another one.
//!
//! Two things the compiler cannot see any more are seen to here: that it is only touched while
//! the thread is attached, and by one call at a time.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ThreadId};

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use crate::simulation::World;

const NAME: &CStr = c"py_reactor.simulation";

/// What a capsule holds.
struct Stage {
    /// Where it was made. The engine takes this one for its worker.
    thread: ThreadId,
    /// A call works on the world, and it may be the one that asks.
    busy: AtomicBool,
    /// `None` once it is over.
    world: UnsafeCell<Option<World<'static>>>,
}

// SAFETY: what keeps a `World` on its thread is that it must not be touched unattached, and that
// it is not made for two threads at a time. `with` sees to both, and the destructor of a capsule
// runs attached and when nobody refers to the capsule any more.
unsafe impl Send for Stage {}

/// Puts a world into a capsule.
pub(crate) fn keep<'py>(py: Python<'py>, world: World<'py>) -> PyResult<Bound<'py, PyCapsule>> {
    // SAFETY: the two types differ in a lifetime only, so they are laid out alike. Nothing gets
    // at the world with the longer one: `with` lends the lifetime of its own token instead, and
    // `drop` does so too.
    let world = unsafe { std::mem::transmute::<World<'py>, World<'static>>(world) };
    let stage = Stage {
        thread: thread::current().id(),
        busy: AtomicBool::new(false),
        world: UnsafeCell::new(Some(world)),
    };
    PyCapsule::new_with_value(py, stage, NAME)
}

/// Works on the world in a capsule. What `work` returns knows no lifetime of it.
///
/// # Errors
/// It is over, it is another thread's, or a call works on it already; or what `work` says.
pub(crate) fn with<T>(
    capsule: &Bound<'_, PyAny>,
    work: impl for<'py> FnOnce(Python<'py>, &mut World<'py>) -> PyResult<T>,
) -> PyResult<T> {
    hold(capsule, |py, world| match world {
        Some(world) => work(py, world),
        None => Err(PyRuntimeError::new_err("the simulation is over")),
    })
}

/// Ends the world in a capsule, if it is there still.
///
/// # Errors
/// As [`with`].
pub(crate) fn end(capsule: &Bound<'_, PyAny>) -> PyResult<()> {
    hold(capsule, |py, world| {
        world.take().map_or(Ok(()), |world| world.end(py))
    })
}

fn hold<T>(
    capsule: &Bound<'_, PyAny>,
    work: impl for<'py> FnOnce(Python<'py>, &mut Option<World<'py>>) -> PyResult<T>,
) -> PyResult<T> {
    let stage = stage(capsule)?;
    if stage.thread != thread::current().id() {
        return Err(PyRuntimeError::new_err(
            "a simulation is used by the thread that began it",
        ));
    }
    if stage.busy.swap(true, Ordering::Acquire) {
        return Err(PyRuntimeError::new_err(
            "the simulation is running: a callback cannot drive it",
        ));
    }
    let _end = Busy(&stage.busy);
    let world = stage.world.get().cast::<Option<World<'_>>>();
    // SAFETY: the pointer is that of a cell which lives as long as the capsule, and `capsule`
    // keeps that. It is the only reference: `busy` was false, is true now, and stays so until
    // `_end` is dropped, after the last use. The thread is attached, as the token says, and the
    // lifetime of the world is that of the token: `work` is made for any.
    work(capsule.py(), unsafe { &mut *world })
}

fn stage<'a>(object: &'a Bound<'_, PyAny>) -> PyResult<&'a Stage> {
    let no_simulation = || PyTypeError::new_err("not a simulation");
    let capsule = object.cast::<PyCapsule>().map_err(|_| no_simulation())?;
    let pointer = capsule
        .pointer_checked(Some(NAME))
        .map_err(|_| no_simulation())?;
    // SAFETY: only `keep` makes capsules of this name, each around a `Stage`, which lives as long
    // as the capsule; the result borrows from `object`, which keeps it alive.
    Ok(unsafe { pointer.cast::<Stage>().as_ref() })
}

/// The end of a call, also by a panic.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Drop for Stage {
    /// Nobody ended it. Its protocols are told so, and leave the list of those that are served.
    /// Not where Python itself ends: there nobody is told any more, nor anything let go.
    fn drop(&mut self) {
        let mut world = ManuallyDrop::new(self.world.get_mut().take());
        if world.is_none() {
            return;
        }
        Python::try_attach(|py| {
            // A capsule may go while an exception is on its way.
            let pending = PyErr::take(py);
            if let Some(Err(error)) = world.take().map(|world| world.end(py)) {
                error.write_unraisable(py, None);
            }
            if let Some(pending) = pending {
                pending.restore(py);
            }
        });
    }
}
