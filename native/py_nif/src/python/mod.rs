//! What talks to Python.
