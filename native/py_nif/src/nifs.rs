//! Every NIF: decode, one call, encode.

mod connection;
mod context;
mod function;
mod listener;
mod python;
mod watch;
