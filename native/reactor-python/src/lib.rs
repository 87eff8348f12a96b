//! Python protocols on the reactor engine.
#![deny(unsafe_code)]

pub mod value;
