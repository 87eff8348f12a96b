//! What talks to the BEAM.
pub(crate) mod term;
