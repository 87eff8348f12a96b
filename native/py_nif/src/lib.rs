//! The NIF library of py_reactor: the only crate that knows both the BEAM and Python.
#![deny(unsafe_code)]

mod beam;
mod calls;
mod connections;
mod context;
mod log;
mod nifs;
mod python;
mod ticket;

use rustler::{Env, Term};

rustler::init!("py_nif", load = load);

/// Runs once, when the BEAM loads the library.
fn load(env: Env, _info: Term) -> bool {
    match python::library::pin().and_then(|()| beam::select::register(env)) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("py_nif: {error}");
            false
        }
    }
}
