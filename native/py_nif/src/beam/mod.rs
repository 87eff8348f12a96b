//! What talks to the BEAM.
pub(crate) mod park;
pub(crate) mod post;
pub(crate) mod select;
pub(crate) mod term;
