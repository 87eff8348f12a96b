//! Python protocols on the reactor engine.
//!
//! [`PythonHandler`] is the engine's [`Handler`](reactor::Handler) for protocol objects;
//! [`functions`] is what those objects call in return. Neither knows the BEAM.
#![deny(unsafe_code)]

mod activity;
mod buffer;
mod exception;
pub mod forks;
pub mod functions;
mod handle;
mod handler;
mod names;
mod recipe;
mod simulation;
mod stack;
mod stage;
pub mod value;

pub use activity::{Activity, Glance, Look, Place};
pub use buffer::address as endpoint_to_python;
pub use exception::{Description, class_name, describe};
pub use handle::adopt;
pub use handler::{Opening, PythonHandler, Refusal, Reply, Report, Surroundings};
pub use recipe::{Errand, Named, Recipe};
