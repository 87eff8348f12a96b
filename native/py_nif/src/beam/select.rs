//! Resources that the BEAM's own poll set watches, through `enif_select`.
//!
//! Facts about `enif_select` (OTP 25 to 27) that this file relies on:
//!
//! - It may be called from any thread, without an environment when the process to tell is
//!   given. The message is made at once and keeps the resource alive, so it can never
//!   speak of another one.
//! - Each select reports once for each direction.
//! - STOP ends the selection and runs the type's `stop` callback: with epoll directly, in
//!   the calling thread, else later on a scheduler. It is needed even when nothing is armed:
//!   a descriptor that is closed without it leaves state behind, which shows as "stealing
//!   control of fd" when the number is used again.
//! - From the first select to STOP the BEAM keeps the resource alive.
//! - The type must have a `stop` callback. rustler registers none, so these types are opened
//!   by hand.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Deref;
use std::os::fd::RawFd;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

use reactor::Interest;
use rustler::sys::{
    ERL_NIF_SELECT_READ, ERL_NIF_SELECT_STOP, ERL_NIF_SELECT_WRITE, ErlNifEnv, ErlNifEvent,
    ErlNifMonitor, ErlNifPid, ErlNifResourceDown, ErlNifResourceDtor, ErlNifResourceFlags,
    ErlNifResourceStop, ErlNifResourceType, ErlNifResourceTypeInit, enif_alloc_resource,
    enif_get_resource, enif_init_resource_type, enif_keep_resource, enif_make_resource,
    enif_monitor_process, enif_release_resource, enif_select,
};
use rustler::{Atom, Env, LocalPid, Term};

/// What such a resource holds.
pub(crate) trait Watched: Send + Sync + Sized + 'static {
    /// What the BEAM calls the type.
    const NAME: &'static CStr;

    /// Where the BEAM's type is kept: a static of its own for each implementation.
    fn kind() -> &'static Kind;

    /// The selection is over, and the descriptor may be closed. Runs on any thread, also
    /// within a call of our own.
    fn stopped(&self);

    /// The process that [`Seat::monitor`] was given is gone. Runs on any thread.
    fn orphaned(_seat: &Seat<Self>) {}
}

/// A resource type, once [`register`] has opened it.
pub(crate) struct Kind(AtomicPtr<ErlNifResourceType>);

impl Kind {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }
}

/// Takes a request back; rustler does not name it.
const ERL_NIF_SELECT_CANCEL: c_int = 1 << 3;

/// Opens the resource type. Called once for each, while the library loads.
pub(crate) fn register<T: Watched>(env: Env<'_>) -> Result<(), String> {
    const {
        assert!(
            align_of::<T>() <= align_of::<usize>(),
            "resources are aligned for pointers"
        );
    }
    let callbacks = ErlNifResourceTypeInit {
        dtor: destroy::<T> as *const ErlNifResourceDtor,
        stop: stop::<T> as *const ErlNifResourceStop,
        down: down::<T> as *const ErlNifResourceDown,
        members: 3,
        dyncall: null(),
    };
    let mut tried = ErlNifResourceFlags::ERL_NIF_RT_CREATE;
    // SAFETY: the environment is that of the load callback; the name ends in NUL; the BEAM
    // copies the callbacks.
    let opened = unsafe {
        enif_init_resource_type(
            env.as_c_arg(),
            T::NAME.as_ptr(),
            &raw const callbacks,
            ErlNifResourceFlags::ERL_NIF_RT_CREATE,
            &raw mut tried,
        )
    };
    if opened.is_null() {
        return Err(format!("the BEAM refuses the resource type {:?}", T::NAME));
    }
    T::kind().0.store(opened.cast_mut(), Ordering::Release);
    Ok(())
}

/// A reference to a `T` in a resource of the BEAM.
pub(crate) struct Seat<T: Watched> {
    object: *mut c_void,
    holds: PhantomData<T>,
}

// SAFETY: resources may be referred to, used and released on any thread, and what is in
// this one is Send and Sync.
unsafe impl<T: Watched> Send for Seat<T> {}

impl<T: Watched> Seat<T> {
    pub(crate) fn new(content: T) -> io::Result<Self> {
        // SAFETY: the type was opened by `register` while the library was loaded.
        let object =
            unsafe { enif_alloc_resource(T::kind().0.load(Ordering::Acquire), size_of::<T>()) };
        if object.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: fresh memory of the right size, aligned well enough as `register` asserts.
        unsafe { object.cast::<T>().write(content) };
        Ok(Self::referring_to(object))
    }

    /// Has the type live for ever: the BEAM frees it with the module only when there is no resource.
    pub(crate) fn keep_kind() {
        // SAFETY: the type was opened by `register` while the library was loaded. What is allocated is
        // never written, and as nobody refers to it, never read nor destroyed either.
        unsafe { enif_alloc_resource(T::kind().0.load(Ordering::Acquire), size_of::<T>()) };
    }

    /// The resource in a term, if that is one of this type.
    pub(crate) fn of(term: Term<'_>) -> Option<Self> {
        let mut object: *const c_void = null();
        // SAFETY: asks whether the term is a resource of our type, in its own environment; the
        // reference is kept before the term can go away.
        unsafe {
            let kind = T::kind().0.load(Ordering::Acquire);
            let term_of = term.get_env().as_c_arg();
            if enif_get_resource(term_of, term.as_c_arg(), kind, &raw mut object) == 0 {
                return None;
            }
            enif_keep_resource(object);
        }
        Some(Self::referring_to(object.cast_mut()))
    }

    /// The term by which Erlang knows the resource.
    pub(crate) fn term<'a>(&self, env: Env<'a>) -> Term<'a> {
        // SAFETY: our reference keeps the resource alive; the term takes one of its own.
        unsafe { Term::new(env, enif_make_resource(env.as_c_arg(), self.object)) }
    }

    /// Has [`Watched::orphaned`] called when the process ends. False if it has ended.
    pub(crate) fn monitor(&self, env: Env<'_>, process: LocalPid) -> bool {
        // SAFETY: the environment is that of the running call; the type has a `down` callback;
        // a monitor that nobody takes back needs no place.
        unsafe {
            enif_monitor_process(env.as_c_arg(), self.object, process.as_c_arg(), null_mut()) == 0
        }
    }

    /// Has `process` told once, by `{select, Resource, Reference, ready_input | ready_output}`.
    pub(crate) fn arm(
        &self,
        number: RawFd,
        interest: Interest,
        process: LocalPid,
        reference: Atom,
    ) -> io::Result<()> {
        let mode = match interest {
            Interest::Read => ERL_NIF_SELECT_READ,
            Interest::Write => ERL_NIF_SELECT_WRITE,
        };
        self.select(number, mode, process, reference)
            .inspect_err(|_| {
                // The BEAM keeps what it was asked for, though it failed, and would then not
                // watch the next descriptor with this number: take the request back.
                let _ = self.select(number, mode | ERL_NIF_SELECT_CANCEL, process, reference);
            })
    }

    /// Ends the selection, and has [`Watched::stopped`] called, at once or soon after.
    pub(crate) fn stop(&self, number: RawFd, process: LocalPid, reference: Atom) {
        let stopped = self.select(number, ERL_NIF_SELECT_STOP, process, reference);
        if stopped.is_err() {
            // The BEAM does not know the number, or not as ours.
            (**self).stopped();
        }
    }

    fn select(
        &self,
        number: RawFd,
        mode: c_int,
        process: LocalPid,
        reference: Atom,
    ) -> io::Result<()> {
        // SAFETY: no environment is needed when the process is given; our reference keeps the
        // resource alive; the reference is an atom, which lives in no environment.
        let result = unsafe {
            enif_select(
                null_mut(),
                number as ErlNifEvent,
                mode,
                self.object,
                process.as_c_arg(),
                reference.as_c_arg(),
            )
        };
        if result < 0 {
            return Err(io::Error::other(format!("enif_select answers {result}")));
        }
        Ok(())
    }

    const fn referring_to(object: *mut c_void) -> Self {
        Self {
            object,
            holds: PhantomData,
        }
    }
}

impl<T: Watched> Deref for Seat<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` wrote a `T`, and our reference keeps the resource alive.
        unsafe { &*self.object.cast::<T>() }
    }
}

impl<T: Watched> Clone for Seat<T> {
    fn clone(&self) -> Self {
        // SAFETY: our own reference keeps the resource alive while another one is taken.
        unsafe { enif_keep_resource(self.object) };
        Self::referring_to(self.object)
    }
}

impl<T: Watched> Drop for Seat<T> {
    fn drop(&mut self) {
        // SAFETY: gives back the reference that came with the seat.
        unsafe { enif_release_resource(self.object) };
    }
}

unsafe extern "C" fn stop<T: Watched>(
    _env: *mut ErlNifEnv,
    object: *mut c_void,
    _event: ErlNifEvent,
    _is_direct_call: c_int,
) {
    // SAFETY: the BEAM calls this with a resource of the type that is still alive.
    unsafe { &*object.cast::<T>() }.stopped();
}

unsafe extern "C" fn down<T: Watched>(
    _env: *mut ErlNifEnv,
    object: *mut c_void,
    _process: *const ErlNifPid,
    _monitor: *const ErlNifMonitor,
) {
    // SAFETY: the BEAM calls this with a resource of the type that is still alive, so that
    // another reference may be taken, which the seat gives back.
    unsafe { enif_keep_resource(object) };
    T::orphaned(&Seat::referring_to(object));
}

unsafe extern "C" fn destroy<T: Watched>(_env: *mut ErlNifEnv, object: *mut c_void) {
    // SAFETY: the last reference is gone, and the BEAM frees the memory next.
    unsafe { object.cast::<T>().drop_in_place() };
}
