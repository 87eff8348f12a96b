//! Plays with the engine: any bytes are a play, and in every play the engine keeps its rules.
//!
//! A play has peers, who connect, send, take little, end and reset; other threads' deeds, which
//! come over links; and a handler that answers every call with whatever the play says, and does
//! deeds of its own meanwhile. Kernel and clock are simulated, so a play goes the same way each
//! time. Once a connection has no answers left it behaves like a sensible protocol, and in the
//! end every peer takes what comes and goes: then all must be over and accounted for.
//!
//! A broken rule is a panic.

mod actor;
mod play;
mod record;

pub use play::Play;
