//! Parking connections in the BEAM's own poll set, through `enif_select`.
//!
//! Facts about `enif_select` (OTP 25 to 27) that this file relies on:
//!
//! - It may be called from any thread, without an environment when the process to tell is
//!   given. The message is made at once and keeps the resource alive, so it can never
//!   speak of another connection.
//! - Each select reports once for each direction.
//! - STOP ends the selection and runs the type's `stop` callback: with epoll directly, in
//!   the calling thread, else later on a scheduler. It is needed even when nothing is armed:
//!   a descriptor that is closed without it leaves state behind, which shows as "stealing
//!   control of fd" when the number is used again.
//! - The type must have a `stop` callback. rustler registers none, so this type is opened
//!   by hand.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::size_of;
use std::os::fd::RawFd;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use parking_lot::Mutex;
use reactor::{Demultiplexer, Descriptor, Interest, Key, Mailbox, Readiness};
use rustler::sys::{
    ERL_NIF_SELECT_READ, ERL_NIF_SELECT_STOP, ERL_NIF_SELECT_WRITE, ErlNifEnv, ErlNifEvent,
    ErlNifResourceDtor, ErlNifResourceFlags, ErlNifResourceStop, ErlNifResourceType,
    ErlNifResourceTypeInit, enif_alloc_resource, enif_get_resource, enif_init_resource_type,
    enif_keep_resource, enif_release_resource, enif_select,
};
use rustler::{Env, LocalPid, Term};

/// What the BEAM holds of a parked connection.
struct Parked {
    key: Key,
    mailbox: Arc<Mailbox>,
    /// Taken out by `stop`. The lock is never held across a call.
    descriptor: Mutex<Option<Arc<Descriptor>>>,
}

/// Takes a request back; rustler does not name it.
const ERL_NIF_SELECT_CANCEL: c_int = 1 << 3;

static TYPE: AtomicPtr<ErlNifResourceType> = AtomicPtr::new(null_mut());

/// Opens the resource type. Called once, while the library loads.
pub(crate) fn register(env: Env<'_>) -> Result<(), String> {
    let callbacks = ErlNifResourceTypeInit {
        dtor: destroy as *const ErlNifResourceDtor,
        stop: stop as *const ErlNifResourceStop,
        down: null(),
        members: 2,
        dyncall: null(),
    };
    let mut tried = ErlNifResourceFlags::ERL_NIF_RT_CREATE;
    // SAFETY: the environment is that of the load callback; the name ends in NUL; the BEAM
    // copies the callbacks.
    let opened = unsafe {
        enif_init_resource_type(
            env.as_c_arg(),
            c"py_reactor_connection".as_ptr(),
            &raw const callbacks,
            ErlNifResourceFlags::ERL_NIF_RT_CREATE,
            &raw mut tried,
        )
    };
    if opened.is_null() {
        return Err("the BEAM refuses the resource type of connections".to_owned());
    }
    TYPE.store(opened.cast_mut(), Ordering::Release);
    Ok(())
}

/// A reference to a [`Parked`] in a resource of the BEAM.
pub(crate) struct Seat(*mut c_void);

// SAFETY: resources may be referred to, used and released on any thread, and what is in
// this one is Send and Sync.
unsafe impl Send for Seat {}

impl Seat {
    fn new(parked: Parked) -> io::Result<Self> {
        // SAFETY: the type was opened by `register` before any engine could run.
        let object =
            unsafe { enif_alloc_resource(TYPE.load(Ordering::Acquire), size_of::<Parked>()) };
        if object.is_null() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        // SAFETY: fresh memory of the right size; resources are aligned for any C type, and
        // `Parked` needs no more than a pointer's alignment.
        unsafe { object.cast::<Parked>().write(parked) };
        Ok(Self(object))
    }

    fn parked(&self) -> &Parked {
        // SAFETY: `new` wrote a `Parked`, and our reference keeps the resource alive.
        unsafe { &*self.0.cast::<Parked>() }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // SAFETY: gives back the reference that `new` or `seat_of` took.
        unsafe { enif_release_resource(self.0) };
    }
}

const _: () = assert!(align_of::<Parked>() <= align_of::<usize>());

/// The seat in a term, if that is what it is.
fn seat_of(term: Term<'_>) -> Option<Seat> {
    let mut object: *const c_void = null();
    // SAFETY: asks whether the term is a resource of our type, in its own environment; the
    // reference is kept before the term can go away.
    unsafe {
        let kind = TYPE.load(Ordering::Acquire);
        let term_of = term.get_env().as_c_arg();
        if enif_get_resource(term_of, term.as_c_arg(), kind, &raw mut object) == 0 {
            return None;
        }
        enif_keep_resource(object);
    }
    Some(Seat(object.cast_mut()))
}

/// Tells the worker of a parked connection that it is ready. False if `connection` is no
/// connection.
pub(crate) fn report_ready(connection: Term<'_>, interest: Interest) -> bool {
    let Some(seat) = seat_of(connection) else {
        return false;
    };
    let readiness = match interest {
        Interest::Read => Readiness::READ,
        Interest::Write => Readiness::WRITE,
    };
    let parked = seat.parked();
    parked.mailbox.ready(parked.key, readiness);
    true
}

/// Parks the connections of one context; its process gets the messages.
pub(crate) struct BeamDemultiplexer {
    process: LocalPid,
    undefined: rustler::Atom,
}

impl BeamDemultiplexer {
    pub(crate) const fn new(process: LocalPid, undefined: rustler::Atom) -> Self {
        Self { process, undefined }
    }

    fn select(&self, number: RawFd, mode: c_int, seat: &Seat) -> io::Result<()> {
        // SAFETY: no environment is needed when the process is given; the seat keeps its
        // resource alive; the reference is an atom, which lives in no environment.
        let result = unsafe {
            enif_select(
                null_mut(),
                number as ErlNifEvent,
                mode,
                seat.0,
                self.process.as_c_arg(),
                self.undefined.as_c_arg(),
            )
        };
        if result < 0 {
            return Err(io::Error::other(format!("enif_select answers {result}")));
        }
        Ok(())
    }
}

impl Demultiplexer for BeamDemultiplexer {
    type Seat = Seat;

    fn seat(
        &mut self,
        key: Key,
        descriptor: &Arc<Descriptor>,
        mailbox: &Arc<Mailbox>,
    ) -> io::Result<Seat> {
        Seat::new(Parked {
            key,
            mailbox: Arc::clone(mailbox),
            descriptor: Mutex::new(Some(Arc::clone(descriptor))),
        })
    }

    fn arm(&mut self, seat: &Seat, interest: Interest) -> io::Result<()> {
        let number = descriptor_of(seat).ok_or(io::ErrorKind::NotFound)?.number();
        let mode = match interest {
            Interest::Read => ERL_NIF_SELECT_READ,
            Interest::Write => ERL_NIF_SELECT_WRITE,
        };
        self.select(number, mode, seat).inspect_err(|_| {
            // The BEAM keeps what it was asked for, though it failed, and would then not
            // watch the next descriptor with this number: take the request back.
            let _ = self.select(number, mode | ERL_NIF_SELECT_CANCEL, seat);
        })
    }

    fn retire(&mut self, seat: Seat) {
        let Some(descriptor) = descriptor_of(&seat) else {
            return;
        };
        // STOP would take the number away from whoever watches it now, a port for instance.
        // What the BEAM still keeps of us goes when somebody selects the number.
        let stopped = !descriptor.is_strangers()
            && self
                .select(descriptor.number(), ERL_NIF_SELECT_STOP, &seat)
                .is_ok();
        // STOP fails only for a descriptor that the BEAM does not know, or not as ours. Should
        // the BEAM still refer to the seat, that holds no descriptor.
        if !stopped {
            let kept = seat.parked().descriptor.lock().take();
            drop(kept);
        }
    }
}

fn descriptor_of(seat: &Seat) -> Option<Arc<Descriptor>> {
    seat.parked().descriptor.lock().clone()
}

/// The selection is over: the descriptor may be closed, unless the engine still has it.
unsafe extern "C" fn stop(
    _env: *mut ErlNifEnv,
    object: *mut c_void,
    _event: ErlNifEvent,
    _is_direct_call: c_int,
) {
    // SAFETY: the BEAM calls this with a resource of our type that is still alive.
    let parked = unsafe { &*object.cast::<Parked>() };
    let descriptor = parked.descriptor.lock().take();
    drop(descriptor);
}

unsafe extern "C" fn destroy(_env: *mut ErlNifEnv, object: *mut c_void) {
    // SAFETY: the last reference is gone, and the BEAM frees the memory next.
    unsafe { object.cast::<Parked>().drop_in_place() };
}
