//! Resource types that outlive the module.
//!
//! When the BEAM unloads a module, by `code:purge` and at the end of `init:stop`, it frees each of the
//! module's resource types of which there is no resource. Threads of Python and workers that a callback
//! holds up do not end with the module: they would go on to allocate from freed memory. So one resource
//! of each type that such threads allocate is made after each load, and never released.

use std::mem::forget;
use std::sync::atomic::{AtomicBool, Ordering};

use rustler::{Env, ResourceArc};

use crate::beam::park::Parked;
use crate::beam::select::Seat;
use crate::connections::Connection;
use crate::functions::FunctionCall;

static IS_NEW: AtomicBool = AtomicBool::new(false);

/// The types were opened: they are new.
pub(crate) fn are_new() {
    IS_NEW.store(true, Ordering::Release);
}

/// Makes the types last, unless they do. Called soon after the library was loaded: until then nothing
/// can be allocated.
pub(crate) fn keep(env: Env<'_>) {
    if IS_NEW.swap(false, Ordering::AcqRel) {
        forget(ResourceArc::new(FunctionCall::over(env.pid())));
        forget(ResourceArc::new(Connection::nobody()));
        Seat::<Parked>::keep_kind();
    }
}
