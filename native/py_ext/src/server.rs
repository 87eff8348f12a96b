//! `_erlang.Server`: a reactor, with or without a listening socket, that a Python thread runs.
//!
//! A class of ours, as nothing here is on the path of an event. It belongs to the process that made it:
//! a child that was forked later has the same epoll, whose entries are the parent's.

use std::mem::ManuallyDrop;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use reactor::{
    Acceptor, AdoptError, Counters, Door, Endpoint, Limits, ListenOptions, Reactor, SendError,
    ServerOptions, SlowConsumer,
};
use reactor_python::value::{Types, Value, from_python};
use reactor_python::{Activity, Opening, PythonHandler, Recipe, adopt, endpoint_to_python, forks};

use crate::surroundings::{Plain, end_in_child};

/// Beyond what any clock tells.
const FAR: Duration = Duration::from_secs(u32::MAX as u64);

/// A reactor, and what it was made with.
#[pyclass(frozen, module = "_erlang")]
pub(crate) struct Server {
    /// Left alone in a forked child: to close it there would touch what the parent has.
    parts: ManuallyDrop<Parts>,
    generation: u32,
}

struct Parts {
    engine: Engine,
    /// What the run that goes on is doing.
    activity: Mutex<Option<Arc<Activity>>>,
}

enum Engine {
    Listening(reactor::Server<Opening>),
    Alone(Reactor<Opening>),
}

impl Engine {
    const fn reactor(&self) -> &Reactor<Opening> {
        match self {
            Self::Listening(server) => server.reactor(),
            Self::Alone(reactor) => reactor,
        }
    }

    /// What is missing to accept clients.
    fn shortage(&self) -> Option<&'static str> {
        match self {
            Self::Listening(server) => server.shortage().map(|errno| errno.desc()),
            Self::Alone(_) => None,
        }
    }
}

/// Said at once, and then as often as listeners inside the BEAM say it.
const SHORTAGE_EVERY: Duration = Duration::from_secs(1);

/// When was it last said that something is missing?
#[derive(Default)]
struct Shortage(Option<Instant>);

impl Shortage {
    fn tell(&mut self, engine: &Engine, short: &Bound<'_, PyAny>) -> PyResult<()> {
        let Some(text) = engine.shortage() else {
            return Ok(());
        };
        if self.0.is_none_or(|then| then.elapsed() >= SHORTAGE_EVERY) {
            self.0 = Some(Instant::now());
            short.call1((text,))?;
        }
        Ok(())
    }
}

#[pymethods]
impl Server {
    /// Listens at once, on an IP address with its port, or on the path of a Unix socket, or accepts from
    /// a descriptor that listens already; serves only what is handed in if there is none of them. Times
    /// are in milliseconds, None is for ever.
    #[new]
    #[pyo3(signature = (*, name, address, unix, listening, backlog, reuseport, nodelay, max_connections, idle_timeout,
        handshake_timeout, write_timeout, high_water, low_water, slow_consumer, info))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        name: String,
        address: Option<(String, u16, u32, u32)>,
        unix: Option<PathBuf>,
        listening: Option<i32>,
        backlog: u32,
        reuseport: bool,
        nodelay: bool,
        max_connections: Option<u64>,
        idle_timeout: Option<u64>,
        handshake_timeout: Option<u64>,
        write_timeout: Option<u64>,
        high_water: usize,
        low_water: usize,
        slow_consumer: (String, Option<usize>),
        info: &Bound<'_, PyDict>,
    ) -> PyResult<Self> {
        let limits = Limits {
            idle_timeout: idle_timeout.map(Duration::from_millis),
            handshake_timeout: handshake_timeout.map(Duration::from_millis),
            write_timeout: write_timeout.map(Duration::from_millis),
            high_water,
            low_water,
            slow_consumer: policy(&slow_consumer.0, slow_consumer.1)?,
        };
        let options = ServerOptions {
            name,
            listen: ListenOptions {
                backlog,
                reuseport,
                nodelay,
            },
            limits,
            max_connections: max_connections.unwrap_or(u64::MAX),
        };
        let opening = opening(py, info)?;
        let engine = match (endpoint(address, unix)?, listening) {
            (Some(endpoint), _) => {
                reactor::Server::new(&endpoint, options, opening).map(Engine::Listening)
            }
            (None, Some(fd)) => duplicate(fd)
                .and_then(|socket| reactor::Server::inherit(socket, options, opening))
                .map(Engine::Listening),
            (None, None) => Reactor::open().map(Engine::Alone),
        };
        let engine = engine.map_err(os_error)?;
        Ok(Self {
            parts: ManuallyDrop::new(Parts {
                engine,
                activity: Mutex::default(),
            }),
            generation: forks::generation(),
        })
    }

    /// Serves on this thread until it is stopped, with protocols that `factory` makes. `report` is called
    /// with each failure, `short` now and then while something is missing to accept clients, `started`
    /// once when the loop runs. With `signals`, on the main thread, Python's
    /// signal handlers are called between turns; what they raise ends it, and is raised.
    fn serve(
        &self,
        py: Python<'_>,
        factory: Bound<'_, PyAny>,
        report: Py<PyAny>,
        short: &Bound<'_, PyAny>,
        started: &Bound<'_, PyAny>,
        signals: bool,
    ) -> PyResult<()> {
        let engine = &self.ours()?.engine;
        let counters = Arc::clone(engine.reactor().counters());
        let activity = Arc::new(Activity::default());
        let plain = Plain::new(report);
        let generation = plain.generation();
        let handler = PythonHandler::new(py, counters, Arc::clone(&activity), plain)?;
        let mut handler = handler.with_factory(factory);
        let mut waiting = Some(started);
        let mut raised = None;
        let mut shortage = Shortage::default();
        let mut look = || {
            if let Some(started) = waiting.take() {
                started.call0()?;
            }
            shortage.tell(engine, short)?;
            if signals { py.check_signals() } else { Ok(()) }
        };
        let mut look = || {
            let looked = look();
            // A handler of a signal may have forked, and this be the child.
            end_in_child(generation);
            looked
        };
        let between = || match look() {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                raised = Some(error);
                ControlFlow::Break(())
            }
        };
        let doing = Doing::enter(&self.parts, activity);
        let served = match engine {
            Engine::Listening(server) => server.run_with(&mut handler, between),
            Engine::Alone(reactor) => reactor.run_with(&mut handler, between),
        };
        drop(doing);
        raised.map_or_else(|| served.map_err(os_error), Err)
    }

    /// Has the run end: the listening socket first, then the connections, drained for so many seconds
    /// at most, or for as long as it takes. Never waits. Does nothing in a forked child.
    fn stop(&self, py: Python<'_>, within_s: Option<f64>) -> PyResult<()> {
        let Ok(parts) = self.ours() else {
            return Ok(());
        };
        let within = within_s.map_or(Ok(FAR), Duration::try_from_secs_f64);
        let within = within.map_err(|error| PyValueError::new_err(error.to_string()))?;
        py.detach(|| match &parts.engine {
            Engine::Listening(server) => server.stop(within),
            Engine::Alone(reactor) => reactor.stop(),
        });
        Ok(())
    }

    /// Serves a socket, pipe or terminal that is open already; it is duplicated.
    fn hand_in(&self, py: Python<'_>, fd: i32, info: &Bound<'_, PyDict>) -> PyResult<()> {
        let parts = self.ours()?;
        let info = from_python(info, &Types::load(py)?)?;
        let opening = Opening {
            info,
            recipe: None,
            reply: None,
        };
        let descriptor = adopt(fd).map_err(adopt_error)?;
        let door: Door<Opening> = parts.engine.reactor().door();
        door.hand_in(descriptor, opening)
            .map_err(|(error, _)| match error {
                SendError::Full => PyRuntimeError::new_err("too many wait to be served already"),
                SendError::Closed => PyRuntimeError::new_err("the server has stopped"),
            })
    }

    /// Has the loop wake, and its signal handlers called, when there is something to read from a
    /// descriptor, which is duplicated; what is read is thrown away.
    fn wake_on(&self, fd: i32) -> PyResult<()> {
        let parts = self.ours()?;
        let bell = duplicate(fd).map_err(os_error)?;
        parts.engine.reactor().wake_on(bell).map_err(os_error)
    }

    /// Raises `exception`, a class, in the callback that runs on another thread, if one does.
    fn interrupt(&self, exception: &Bound<'_, PyAny>) {
        let activity = self.parts.activity.lock().clone();
        if let Some(activity) = activity
            && let Some(job) = activity.current_job()
        {
            activity.interrupt(job, exception);
        }
    }

    /// Whether a callback is running.
    fn is_busy(&self) -> bool {
        let activity = self.parts.activity.lock();
        activity
            .as_ref()
            .is_some_and(|it| it.current_job().is_some())
    }

    /// Whether this process has made it, and not one that it was forked from.
    fn is_ours(&self) -> bool {
        self.generation == forks::generation()
    }

    /// Where it listens: as `erlang.reactor.Address`; None if it does not.
    fn address<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        match &self.parts.engine {
            Engine::Listening(server) => endpoint_to_python(py, server.address()).map(Some),
            Engine::Alone(_) => Ok(None),
        }
    }

    /// What is counted, in all runs together.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let parts = self.ours()?;
        let reactor = parts.engine.reactor();
        let stats = counted(py, reactor.counters())?;
        let door = reactor.door();
        stats.set_item("queue_depth", door.depth())?;
        stats.set_item("busy_ms", door.mailbox().busy_ms())?;
        stats.set_item("shortage", parts.engine.shortage())?;
        Ok(stats)
    }
}

impl Server {
    fn ours(&self) -> PyResult<&Parts> {
        if self.is_ours() {
            Ok(&self.parts)
        } else {
            Err(PyRuntimeError::new_err(
                "the server belongs to the process that made it, and this one was forked later",
            ))
        }
    }
}

impl Drop for Server {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: this is the only place that drops it, once, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.parts) };
        }
    }
}

/// As long as it lives, others see what the run is doing.
struct Doing<'a>(&'a Parts);

impl<'a> Doing<'a> {
    fn enter(parts: &'a Parts, activity: Arc<Activity>) -> Self {
        *parts.activity.lock() = Some(activity);
        Self(parts)
    }
}

impl Drop for Doing<'_> {
    fn drop(&mut self) {
        *self.0.activity.lock() = None;
    }
}

/// What each client comes with.
fn opening(
    py: Python<'_>,
    info: &Bound<'_, PyDict>,
) -> PyResult<impl Fn() -> Opening + Send + Sync + 'static> {
    let Value::Map(info) = from_python(info, &Types::load(py)?)? else {
        return Err(PyValueError::new_err("info is a dict"));
    };
    let recipe = (!info.is_empty()).then(|| {
        Arc::new(Recipe {
            id: 0,
            protocol: None,
            info,
        })
    });
    Ok(move || Opening {
        info: Value::Map(Vec::new()),
        recipe: recipe.clone(),
        reply: None,
    })
}

fn endpoint(
    address: Option<(String, u16, u32, u32)>,
    unix: Option<PathBuf>,
) -> PyResult<Option<Endpoint>> {
    let Some((ip, port, flow, scope)) = address else {
        return Ok(unix.map(Endpoint::Unix));
    };
    let ip: IpAddr = ip
        .parse()
        .map_err(|_| PyValueError::new_err(format!("{ip:?} is no IP address")))?;
    Ok(Some(Endpoint::Tcp(match ip {
        IpAddr::V4(_) => SocketAddr::new(ip, port),
        IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)),
    })))
}

fn policy(name: &str, messages: Option<usize>) -> PyResult<SlowConsumer> {
    match (name, messages) {
        ("drop_old", None) => Ok(SlowConsumer::DropOld),
        ("drop_new", None) => Ok(SlowConsumer::DropNew),
        ("disconnect", None) => Ok(SlowConsumer::Disconnect),
        ("buffer", Some(messages)) if messages > 0 => Ok(SlowConsumer::Buffer(messages)),
        _ => Err(PyValueError::new_err(format!(
            "no policy for slow consumers: {name:?}, {messages:?}"
        ))),
    }
}

fn counted<'py>(py: Python<'py>, counters: &Counters) -> PyResult<Bound<'py, PyDict>> {
    let stats = PyDict::new(py);
    for (name, number) in counters.snapshot() {
        stats.set_item(name, number)?;
    }
    let closed_by = PyDict::new(py);
    for (reason, number) in counters.closed_by() {
        closed_by.set_item(reason, number)?;
    }
    stats.set_item("closed_by", closed_by)?;
    Ok(stats)
}

/// A Unix socket that listens, for other processes to accept from. Its file goes when it is closed.
#[pyclass(frozen, module = "_erlang")]
pub(crate) struct Listener(Mutex<Option<Acceptor>>);

#[pymethods]
impl Listener {
    #[new]
    fn new(path: PathBuf, backlog: u32) -> PyResult<Self> {
        let options = ListenOptions {
            backlog,
            ..ListenOptions::default()
        };
        let text = path.display().to_string().replacen('\0', "@", 1);
        let acceptor = Acceptor::open(&Endpoint::Unix(path), &options);
        let acceptor = acceptor.map_err(|error| match error.raw_os_error() {
            Some(number) => PyOSError::new_err((number, format!("{text}: {}", system(number)))),
            None => os_error(error),
        })?;
        Ok(Self(Mutex::new(Some(acceptor))))
    }

    /// The number of the descriptor; -1 if it is closed.
    fn fileno(&self) -> i32 {
        let acceptor = self.0.lock();
        acceptor
            .as_ref()
            .map_or(-1, |open| open.as_fd().as_raw_fd())
    }

    fn close(&self) {
        let acceptor = self.0.lock().take();
        drop(acceptor);
    }
}

#[allow(unsafe_code)]
fn duplicate(fd: i32) -> std::io::Result<OwnedFd> {
    if fd < 0 {
        return Err(std::io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is not -1, and is only duplicated, which the kernel refuses for one that is not
    // open.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
}

fn adopt_error(error: AdoptError) -> PyErr {
    match error {
        AdoptError::BadDescriptor => os_error(std::io::Error::from_raw_os_error(libc::EBADF)),
        AdoptError::System(errno) => os_error(errno.into()),
        other => PyValueError::new_err(other.to_string()),
    }
}

/// With its number, from which Python makes the fitting class.
fn os_error(error: std::io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, system(number))),
        None => PyRuntimeError::new_err(error.to_string()),
    }
}

/// What the system says, without the number that Rust puts behind it.
fn system(number: i32) -> String {
    let error = std::io::Error::from_raw_os_error(number).to_string();
    match error.rsplit_once(" (os error ") {
        Some((text, _)) => text.to_owned(),
        None => error,
    }
}
