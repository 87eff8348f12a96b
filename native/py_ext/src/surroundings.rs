//! What plain CPython is to the handler.

use pyo3::prelude::*;
use reactor_python::{Report, Surroundings, forks};

/// A thread of Python that runs a server.
pub(crate) struct Plain {
    report: Py<PyAny>,
    /// In which the run began.
    generation: u32,
}

impl Plain {
    /// `report` is called with what is to be logged.
    pub(crate) fn new(report: Py<PyAny>) -> Self {
        Self {
            report,
            generation: forks::generation(),
        }
    }

    /// In which the run began.
    pub(crate) const fn generation(&self) -> u32 {
        self.generation
    }
}

/// A child that was forked since has the parent's descriptors and would serve its connections a second
/// time. It ends as a program does that has come to its end.
pub(crate) fn end_in_child(generation: u32) {
    if forks::generation() == generation {
        return;
    }
    Python::attach(|py| {
        for stream in ["stdout", "stderr"] {
            // Nobody is left to tell.
            let _ = py
                .import("sys")
                .and_then(|sys| sys.getattr(stream))
                .and_then(|stream| stream.call_method0("flush"));
        }
    });
    forks::leave(0);
}

impl Surroundings for Plain {
    fn report(&self, report: Report) {
        let Report {
            callback,
            protocol,
            fd,
            peer,
            listener,
            failure,
        } = report;
        Python::attach(|py| {
            let failure = (failure.class, failure.message, failure.traceback);
            let about = (callback, protocol, fd, peer, listener, failure);
            if let Err(error) = self.report.call1(py, about) {
                error.write_unraisable(py, None);
            }
        });
    }

    fn callback_returned(&self) {
        end_in_child(self.generation);
    }

    fn resting(&self) {}
}
