//! What talks to the BEAM.
pub(crate) mod post;
pub(crate) mod term;
