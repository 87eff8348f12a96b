//! The NIF library of py_reactor: the only crate that knows both the BEAM and Python.
#![deny(unsafe_code)]

mod beam;
mod calls;
mod connections;
mod context;
mod functions;
mod lasting;
mod listener;
mod loan;
mod log;
mod nifs;
mod python;
mod sentry;
mod ticket;

use rustler::{Env, Term};

use crate::beam::park::Parked;
use crate::listener::Waiting;

rustler::init!("py_nif", load = load);

/// Runs once, when the BEAM loads the library.
fn load(env: Env, _info: Term) -> bool {
    let loaded = python::library::pin()
        .and_then(|()| beam::select::register::<Parked>(env))
        .and_then(|()| beam::select::register::<Waiting>(env))
        .and_then(|()| sentry::start().map_err(|error| error.to_string()));
    match loaded {
        Ok(()) => {
            lasting::are_new();
            true
        }
        Err(error) => {
            eprintln!("py_nif: {error}");
            false
        }
    }
}
