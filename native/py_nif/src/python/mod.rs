//! What talks to Python.
mod functions;
pub(crate) mod interpreter;
pub(crate) mod library;
pub(crate) mod module;
pub(crate) mod program;
