//! What `erlang.reactor.testing` asks of native code: the engine and the handler as they are, with
//! a kernel and a clock that are simulated.
//!
//! A simulation is a capsule, a connection in it the number that its link has. Each function that
//! does something to a connection returns when there is nothing to do any more.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyCapsule, PyList, PyTuple};
use reactor::simulation::{Origin, Peer, Simulation, Unrest};
use reactor::{Action, Address, Descriptor, Kind, Limits, PushError};

use crate::activity::Activity;
use crate::functions::{duration, slow_consumer as policy};
use crate::handler::{Opening, PythonHandler, Report, Surroundings};
use crate::stage;
use crate::value::{Types, Value, from_python};

/// Adds the functions to the module `_erlang` of one interpreter.
pub(crate) fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(simulation_open, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_connect, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_run, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_advance, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_drain, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_stop, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_close, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_feed, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_half_close, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_fail, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_room, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_message, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_push, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_end, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_take, module)?)?;
    module.add_function(wrap_pyfunction!(simulation_is_open, module)?)
}

type Handler<'py> = PythonHandler<'py, Notes>;

/// A simulation, with what serves its connections and their other ends.
pub(crate) struct World<'py> {
    handler: Handler<'py>,
    simulation: Simulation<Handler<'py>>,
    peers: HashMap<u64, Peer>,
}

impl World<'_> {
    fn run(&mut self) -> PyResult<()> {
        self.simulation.run(&mut self.handler).map_err(unrest)
    }

    fn peer(&self, id: u64) -> PyResult<&Peer> {
        let peer = self.peers.get(&id);
        peer.ok_or_else(|| PyValueError::new_err("no such connection"))
    }

    /// Ends what is open.
    pub(crate) fn end(mut self, _py: Python<'_>) -> PyResult<()> {
        self.simulation.stop(&mut self.handler).map_err(unrest)
    }
}

fn unrest(unrest: Unrest) -> PyErr {
    match unrest {
        Unrest::Spinning => PyRuntimeError::new_err(format!(
            "the protocol keeps the engine busy with nothing: {unrest}"
        )),
        Unrest::Failed(error) => PyOSError::new_err(error.to_string()),
    }
}

/// Writes down what is called and what fails.
struct Notes {
    /// Of (connection, callback, arguments, action).
    calls: Py<PyList>,
    errors: Py<PyList>,
}

impl Surroundings for Notes {
    const TAKES_NOTES: bool = true;

    /// The exception itself is noted.
    fn report(&self, _report: Report) {}

    fn callback_returned(&self) {}

    fn resting(&self) {}

    fn note(
        &self,
        descriptor: &Descriptor,
        callback: &str,
        arguments: Bound<'_, PyTuple>,
        action: Option<Action>,
    ) {
        let py = arguments.py();
        let call = (
            descriptor.link().id(),
            callback,
            arguments,
            action.map(Action::word),
        );
        if let Err(error) = self.calls.bind(py).append(call) {
            error.write_unraisable(py, None);
        }
    }

    fn failed(&self, py: Python<'_>, error: &PyErr) {
        let value = error.value(py);
        // Before Python 3.12 an exception that nobody caught in Python does not know its
        // traceback yet.
        let told = value
            .setattr("__traceback__", error.traceback(py))
            .and_then(|()| self.errors.bind(py).append(value));
        if let Err(error) = told {
            error.write_unraisable(py, None);
        }
    }
}

/// Begins a simulation. `calls` and `errors` are lists to write down in. Limits are in
/// milliseconds and bytes.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn simulation_open<'py>(
    py: Python<'py>,
    factory: Bound<'py, PyAny>,
    calls: Bound<'py, PyList>,
    errors: Bound<'py, PyList>,
    idle_timeout: Option<u64>,
    handshake_timeout: Option<u64>,
    write_timeout: Option<u64>,
    high_water: usize,
    low_water: usize,
    slow_consumer: (String, Option<usize>),
) -> PyResult<Bound<'py, PyCapsule>> {
    let limits = Limits {
        idle_timeout: idle_timeout.map(Duration::from_millis),
        handshake_timeout: handshake_timeout.map(Duration::from_millis),
        write_timeout: write_timeout.map(Duration::from_millis),
        high_water,
        low_water,
        slow_consumer: policy(&slow_consumer.0, slow_consumer.1)?,
    };
    let notes = Notes {
        calls: calls.unbind(),
        errors: errors.unbind(),
    };
    let simulation = Simulation::with_limits(limits)?;
    let counters = Arc::clone(simulation.counters());
    let handler = PythonHandler::new(py, counters, Arc::<Activity>::default(), notes)?;
    let world = World {
        handler: handler.with_factory(factory),
        simulation,
        peers: HashMap::new(),
    };
    stage::keep(py, world)
}

/// Connects somebody; returns the number of the connection. `peer` is an IP address and a port.
#[pyfunction]
fn simulation_connect(
    py: Python<'_>,
    simulation: &Bound<'_, PyAny>,
    kind: &str,
    peer: Option<(IpAddr, u16)>,
    info: &Bound<'_, PyAny>,
) -> PyResult<u64> {
    let kind = match kind {
        "tcp" => Kind::Tcp,
        "udp" => Kind::Udp,
        "unix" => Kind::UnixStream,
        "unix_dgram" => Kind::UnixDatagram,
        _ => {
            return Err(PyValueError::new_err(format!(
                "{kind:?} is none of tcp, udp, unix and unix_dgram"
            )));
        }
    };
    let origin = Origin {
        kind,
        peer: peer.map(|peer| Address::Inet(SocketAddr::from(peer))),
    };
    let opening = Opening {
        info: from_python(info, &Types::load(py)?)?,
        recipe: None,
        reply: Some(Box::new(|_| {})),
    };
    stage::with(simulation, |_, world| {
        let peer = world.simulation.connect(origin, opening);
        let peer = peer.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        let id = peer.link().id();
        world.peers.insert(id, peer);
        world.run()?;
        Ok(id)
    })
}

/// Lets the engine work: somebody else may have asked something of it.
#[pyfunction]
fn simulation_run(simulation: &Bound<'_, PyAny>) -> PyResult<()> {
    stage::with(simulation, |_, world| world.run())
}

/// Moves the time forward.
#[pyfunction]
fn simulation_advance(simulation: &Bound<'_, PyAny>, seconds: f64) -> PyResult<()> {
    let by = duration(seconds)?;
    stage::with(simulation, |_, world| {
        let World {
            simulation,
            handler,
            ..
        } = world;
        simulation.advance(handler, by).map_err(unrest)
    })
}

/// Asks the connections to end.
#[pyfunction]
fn simulation_drain(simulation: &Bound<'_, PyAny>) -> PyResult<()> {
    stage::with(simulation, |_, world| {
        world.simulation.drain();
        world.run()
    })
}

/// Ends the connections, as at the deadline of a listener.
#[pyfunction]
fn simulation_stop(simulation: &Bound<'_, PyAny>) -> PyResult<()> {
    stage::with(simulation, |_, world| {
        world.simulation.end();
        world.run()
    })
}

/// Ends the simulation. Does nothing the second time.
#[pyfunction]
fn simulation_close(simulation: &Bound<'_, PyAny>) -> PyResult<()> {
    stage::end(simulation)
}

/// The peer sends fragments, one after the other, or datagrams, in the name of `sender`.
#[pyfunction]
fn simulation_feed(
    simulation: &Bound<'_, PyAny>,
    connection: u64,
    fragments: Vec<PyBackedBytes>,
    sender: Option<(IpAddr, u16)>,
) -> PyResult<()> {
    stage::with(simulation, |_, world| {
        let peer = world.peer(connection)?;
        for fragment in &fragments {
            match sender {
                Some(sender) => peer.send_as(SocketAddr::from(sender), fragment),
                None => peer.send(fragment),
            }
        }
        world.run()
    })
}

/// The peer sends no more.
#[pyfunction]
fn simulation_half_close(simulation: &Bound<'_, PyAny>, connection: u64) -> PyResult<()> {
    stage::with(simulation, |_, world| {
        world.peer(connection)?.half_close();
        world.run()
    })
}

/// The connection fails with this errno.
#[pyfunction]
fn simulation_fail(simulation: &Bound<'_, PyAny>, connection: u64, errno: i32) -> PyResult<()> {
    let errno = match Errno::from_raw(errno) {
        Errno::UnknownErrno => return Err(PyValueError::new_err(format!("{errno} is no errno"))),
        errno => errno,
    };
    stage::with(simulation, |_, world| {
        world.peer(connection)?.fail(errno);
        world.run()
    })
}

/// The peer takes so many bytes more; None: as many as come. 0: nothing any more.
#[pyfunction]
fn simulation_room(
    simulation: &Bound<'_, PyAny>,
    connection: u64,
    bytes: Option<usize>,
) -> PyResult<()> {
    stage::with(simulation, |_, world| {
        let peer = world.peer(connection)?;
        match bytes {
            None => peer.unblock(),
            Some(0) => peer.block(),
            Some(bytes) => peer.accept(bytes),
        }
        world.run()
    })
}

/// Erlang sends a message.
#[pyfunction]
fn simulation_message(
    py: Python<'_>,
    simulation: &Bound<'_, PyAny>,
    connection: u64,
    message: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let message: Value = from_python(message, &Types::load(py)?)?;
    stage::with(simulation, |_, world| {
        let sent = world.peer(connection)?.link().send(Box::new(message));
        sent.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
        world.run()
    })
}

/// Erlang pushes bytes. Returns why not, if they are not taken.
#[pyfunction]
fn simulation_push(
    simulation: &Bound<'_, PyAny>,
    connection: u64,
    data: PyBackedBytes,
) -> PyResult<Option<&'static str>> {
    stage::with(simulation, |_, world| {
        let pushed = world.peer(connection)?.link().push(&data);
        world.run()?;
        Ok(pushed.err().map(|error| match error {
            PushError::Closed => "closed",
            PushError::Full => "full",
            PushError::Dropped => "dropped",
            PushError::TooLarge => "too_large",
        }))
    })
}

/// Erlang closes the connection.
#[pyfunction]
fn simulation_end(simulation: &Bound<'_, PyAny>, connection: u64) -> PyResult<()> {
    stage::with(simulation, |_, world| {
        // One that is over cannot be closed any more.
        let _ = world.peer(connection)?.link().close();
        world.run()
    })
}

/// What the peer received since the last time, as it was sent.
#[pyfunction]
fn simulation_take(
    py: Python<'_>,
    simulation: &Bound<'_, PyAny>,
    connection: u64,
) -> PyResult<Py<PyList>> {
    let pieces = stage::with(simulation, |_, world| {
        Ok(world.peer(connection)?.take_pieces())
    })?;
    let pieces = pieces.iter().map(|piece| PyBytes::new(py, piece));
    Ok(PyList::new(py, pieces.collect::<Vec<_>>())?.unbind())
}

/// Whether the connection is there.
#[pyfunction]
fn simulation_is_open(simulation: &Bound<'_, PyAny>, connection: u64) -> PyResult<bool> {
    stage::with(simulation, |_, world| Ok(world.peer(connection)?.is_open()))
}
