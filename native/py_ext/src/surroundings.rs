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

    /// A child has the parent's descriptors and would serve its connections a second time. It ends as a
    /// program does that has come to its end.
    fn callback_returned(&self) {
        if forks::generation() == self.generation {
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

    fn resting(&self) {}
}
