//! The engine's handler that calls Python protocols.
//!
//! Everything here happens on one worker thread, which stays attached to its interpreter
//! except while it sleeps. Names, classes and the protocol factory belong to the context,
//! not to the process, so that a context may have an interpreter of its own.

use std::cell::Cell;
use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyString, PyTuple};
use reactor::{Action, Counters, Descriptor, Flushed, Handler, Payload, Reason, Verdict};

use crate::activity::{Activity, Span};
use crate::buffer;
use crate::exception::{Description, class_name, describe};
use crate::handle;
use crate::names::{Callback, Names};
use crate::recipe::{Errand, Factories, Factory, Recipe};
use crate::value::{self, Types, Value};

/// Tells whoever handed a descriptor in what became of it.
pub type Reply = Box<dyn FnOnce(Result<(), Refusal>) + Send>;

/// Why a descriptor did not become a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody called `set_protocol_factory`.
    NoProtocolFactory,
    /// The factory or `connection_made` failed: the traceback.
    Protocol(String),
    /// The info has no counterpart in Python: why.
    BadInfo(String),
    /// The context is full.
    Overload,
}

/// What comes with a descriptor.
pub struct Opening {
    /// What the acceptor says of the client: a map.
    pub info: Value,
    /// How the listener makes its protocols, if one accepted the client.
    pub recipe: Option<Arc<Recipe>>,
    /// Called once, unless the context ends first; `None` if nobody waits.
    pub reply: Option<Reply>,
}

/// A failure for the log.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was going on: the name of a callback.
    pub callback: &'static str,
    /// The class of the protocol, or `?` before there is one.
    pub protocol: String,
    /// The number of the descriptor.
    pub fd: i32,
    /// The address of the peer, as text.
    pub peer: String,
    /// The name of the listener; empty if none accepted the connection.
    pub listener: String,
    /// What went wrong.
    pub failure: Description,
}

/// What the handler needs of the process around it. All calls come on the worker; none may
/// wait.
pub trait Surroundings: Sync {
    /// Whether each call is [noted](Self::note). It is known when the program is compiled, so
    /// that it costs nothing where nobody takes notes.
    const TAKES_NOTES: bool = false;

    /// A callback failed.
    fn report(&self, report: Report);

    /// A callback has come back, maybe in a child that it forked.
    fn callback_returned(&self);

    /// The worker is about to sleep and has let the GIL go.
    fn resting(&self);

    /// A callback has been called with these arguments, and the engine got this action; None if
    /// the callback failed, and of `connection_lost`.
    fn note(&self, _: &Descriptor, _callback: &str, _: Bound<'_, PyTuple>, _: Option<Action>) {}

    /// An exception of the protocol that is going to be reported.
    fn failed(&self, _py: Python<'_>, _error: &PyErr) {}
}

/// A protocol and its descriptor's handle.
pub struct Connection<'py> {
    protocol: Bound<'py, PyAny>,
    /// `write_ready` is the inherited one: the engine can send by itself.
    sends_natively: bool,
    /// `datagram_received` is overridden.
    takes_datagrams: bool,
    /// To look for `write_buffer` runs none of the user's code.
    buffers_plainly: bool,
}

/// Calls Python protocols for an engine.
pub struct PythonHandler<'py, S> {
    py: Python<'py>,
    names: Names<'py>,
    types: Types,
    /// What makes protocols where no recipe names it; None: what `set_protocol_factory` has set.
    factory: Option<Factory<'py>>,
    factories: Factories<'py>,
    counters: Arc<Counters>,
    activity: Arc<Activity>,
    /// The last answer was None, with nothing to write.
    said_nothing: Cell<bool>,
    /// The last job since the worker slept, if it was a callback that is counted, and the number of
    /// its descriptor.
    last: Cell<Option<(i32, Span)>>,
    surroundings: S,
}

impl<'py, S: Surroundings> PythonHandler<'py, S> {
    /// A handler for the interpreter that `py` is attached to.
    ///
    /// # Errors
    /// The package `erlang` cannot be imported.
    pub fn new(
        py: Python<'py>,
        counters: Arc<Counters>,
        activity: Arc<Activity>,
        surroundings: S,
    ) -> PyResult<Self> {
        activity.bind_to_this_thread(py)?;
        Ok(Self {
            py,
            names: Names::new(py)?,
            types: Types::load(py)?,
            factory: None,
            factories: Factories::default(),
            counters,
            activity,
            said_nothing: Cell::new(false),
            last: Cell::new(None),
            surroundings,
        })
    }

    /// The same handler, with something of its own that makes the protocols.
    #[must_use]
    pub fn with_factory(mut self, factory: Bound<'py, PyAny>) -> Self {
        self.factory = Some(Factory::plain(factory));
        self
    }

    /// Runs one event: a callback, and all that may be the user's code around it, like the
    /// `__repr__` of a wrong answer or a `write_buffer` that is a property. All of it can be
    /// interrupted.
    fn watch<T>(&self, at_once: Option<Span>, event: impl FnOnce() -> T) -> (T, Span) {
        self.last.set(None);
        let (result, span) = self.activity.watch(self.py, at_once, event);
        self.surroundings.callback_returned();
        (result, span)
    }

    /// The same of a call into the protocol of a connection, which is counted.
    fn call_in<T>(&self, descriptor: &Descriptor, event: impl FnOnce() -> T) -> T {
        self.count_call(descriptor, None, event)
    }

    fn count_call<T>(
        &self,
        descriptor: &Descriptor,
        at_once: Option<Span>,
        event: impl FnOnce() -> T,
    ) -> T {
        let (result, span) = self.watch(at_once, event);
        self.last.set(Some((descriptor.number(), span)));
        if let Some(owner) = descriptor.owner() {
            owner.count(|counters| counters.count_callback(span.nanos()));
        }
        result
    }

    /// The callback before, if it was one of the same connection, and the worker has not slept
    /// since.
    fn just_before(&self, descriptor: &Descriptor) -> Option<Span> {
        let (number, span) = self.last.take()?;
        (number == descriptor.number()).then_some(span)
    }

    /// What makes the protocol of a new connection.
    fn factory(&mut self, recipe: Option<&Recipe>) -> PyResult<Option<Factory<'py>>> {
        match recipe {
            Some(Recipe {
                id,
                protocol: Some(named),
                ..
            }) => {
                let factory = self.factories.of(self.py, *id, named, &self.types)?;
                Ok(Some(factory.clone()))
            }
            _ if self.factory.is_some() => Ok(self.factory.clone()),
            _ => {
                let factory = self.names.registry.getattr(&self.names.factory)?;
                Ok((!factory.is_none()).then(|| Factory::plain(factory)))
            }
        }
    }

    /// Makes the protocol of a new connection.
    fn make(&self, factory: &Factory<'py>, descriptor: &Descriptor) -> PyResult<Connection<'py>> {
        let names = &self.names;
        let made = || factory.call();
        let protocol = self
            .activity
            .during(None, factory.callable(), descriptor, made)?;
        if !protocol.is_instance(&names.protocol_class)? {
            let class = class_name(&protocol.get_type());
            return Err(PyTypeError::new_err(format!(
                "the protocol factory returned {class}, not a Protocol"
            )));
        }
        if !protocol.getattr(&names.handle)?.is_none() {
            return Err(PyTypeError::new_err(
                "the protocol factory returned a protocol that has a connection already",
            ));
        }
        Ok(Connection {
            sends_natively: names.inherits(&protocol, Callback::WriteReady),
            takes_datagrams: !names.inherits(&protocol, Callback::DatagramReceived),
            buffers_plainly: names.buffers_plainly(&protocol),
            protocol,
        })
    }

    /// Gives a new protocol its attributes and puts it on the list.
    fn introduce(
        &self,
        protocol: &Bound<'py, PyAny>,
        descriptor: &Arc<Descriptor>,
        peer: Option<&Bound<'py, PyTuple>>,
        client_info: &Bound<'py, PyDict>,
    ) -> PyResult<()> {
        let names = &self.names;
        protocol.setattr(&names.handle, handle::linked(self.py, descriptor.link())?)?;
        protocol.setattr(&names.fd, descriptor.number())?;
        protocol.setattr(&names.peer, peer)?;
        protocol.setattr(&names.client_info, client_info)?;
        names.protocols.set_item(descriptor.number(), protocol)
    }

    /// What is said of the client as a dict, completed from the socket.
    fn client_info(
        &self,
        descriptor: &Arc<Descriptor>,
        peer: Option<&Bound<'py, PyTuple>>,
        info: &Value,
        recipe: Option<&Recipe>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let client_info = value::to_python(self.py, info, &self.types)?.cast_into::<PyDict>()?;
        if let Some(recipe) = recipe.filter(|recipe| !recipe.info.is_empty()) {
            let info = value::map_to_python(self.py, &recipe.info, &self.types)?;
            client_info.update(info.as_mapping())?;
        }
        let fill = |key: &Bound<'py, PyString>, value: Option<Bound<'py, PyAny>>| match value {
            Some(value) if !client_info.contains(key)? => client_info.set_item(key, value),
            _ => Ok(()),
        };
        let names = &self.names;
        fill(
            &names.kind,
            Some(PyString::new(self.py, descriptor.kind().name()).into_any()),
        )?;
        if let Some(peer) = peer {
            fill(&names.addr, Some(peer.get_item(0)?))?;
            fill(&names.port, peer.get_item(1).ok())?;
        }
        Ok(client_info)
    }

    /// Calls a method of a protocol and reads its answer.
    fn call<A>(
        &self,
        connection: &Connection<'py>,
        descriptor: &Descriptor,
        callback: Callback,
        arguments: A,
    ) -> Verdict
    where
        A: pyo3::call::PyCallArgs<'py>
            + IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>>
            + Clone,
    {
        let name = self.names.of(callback);
        let noted = S::TAKES_NOTES.then(|| arguments.clone());
        let verdict = self.answer(connection, descriptor, callback, || {
            connection.protocol.call_method1(name, arguments)
        });
        if let Some(arguments) = noted {
            self.note(descriptor, callback, arguments, verdict.ok());
        }
        verdict
    }

    /// The same of a method without arguments, for which Python has a way of its own.
    fn call_alone(
        &self,
        connection: &Connection<'py>,
        descriptor: &Descriptor,
        callback: Callback,
    ) -> Verdict {
        let name = self.names.of(callback);
        let verdict = self.answer(connection, descriptor, callback, || {
            connection.protocol.call_method0(name)
        });
        if S::TAKES_NOTES {
            self.note(descriptor, callback, (), verdict.ok());
        }
        verdict
    }

    fn answer(
        &self,
        connection: &Connection<'py>,
        descriptor: &Descriptor,
        callback: Callback,
        call: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
    ) -> Verdict {
        self.activity
            .during(Some(callback), &connection.protocol, descriptor, call)
            .and_then(|word| self.action(connection, callback, &word))
            .map_err(|error| {
                self.report_failure(connection, descriptor, callback.name(), &error);
                Reason::Exception
            })
    }

    /// Notes a call, for surroundings that wish it.
    fn note<A>(
        &self,
        descriptor: &Descriptor,
        callback: Callback,
        arguments: A,
        action: Option<Action>,
    ) where
        A: IntoPyObject<'py, Target = PyTuple, Output = Bound<'py, PyTuple>>,
    {
        // Fails where there is no memory for a tuple; the next thing will tell.
        if S::TAKES_NOTES
            && let Ok(arguments) = arguments.into_pyobject(self.py)
        {
            self.surroundings
                .note(descriptor, callback.name(), arguments, action);
        }
    }

    /// Reads the answer of a callback: compared by pointer first, by value second.
    fn action(
        &self,
        connection: &Connection<'py>,
        callback: Callback,
        word: &Bound<'py, PyAny>,
    ) -> PyResult<Action> {
        self.said_nothing.set(false);
        if let Some(action) = self.names.action_of(word) {
            return Ok(action);
        }
        if word.is_none() {
            let empty = self.write_buffer(connection)?.is_empty();
            self.said_nothing.set(empty);
            return Ok(if empty {
                Action::ReadPending
            } else {
                Action::WritePending
            });
        }
        word.cast::<PyString>()
            .ok()
            .and_then(|word| Action::from_word(word.to_str().ok()?))
            .ok_or_else(|| {
                let what = word.repr().map_or_else(
                    |_| "something unprintable".to_owned(),
                    |text| text.to_string_lossy().chars().take(80).collect(),
                );
                PyTypeError::new_err(format!(
                    "{} returned {what} ({}), which is no action",
                    callback.name(),
                    class_name(&word.get_type()),
                ))
            })
    }

    fn write_buffer(&self, connection: &Connection<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let buffer = connection.protocol.getattr(&self.names.write_buffer)?;
        buffer.cast_into::<PyByteArray>().map_err(|error| {
            let class = class_name(&error.into_inner().get_type());
            PyTypeError::new_err(format!("write_buffer is a {class}, not a bytearray"))
        })
    }

    /// Sends what is in `write_buffer`.
    fn send_buffer(&self, connection: &Connection<'py>, descriptor: &Descriptor) -> Flushed {
        let flushed = self
            .write_buffer(connection)
            .and_then(|buffer| buffer::flush(descriptor, &buffer));
        flushed.unwrap_or_else(|error| {
            self.report_failure(connection, descriptor, "write_ready", &error);
            Flushed::Failed(Reason::Exception)
        })
    }

    fn report_failure(
        &self,
        connection: &Connection<'py>,
        descriptor: &Descriptor,
        callback: &'static str,
        error: &PyErr,
    ) {
        let protocol = class_name(&connection.protocol.get_type());
        self.report_error(protocol, Some(descriptor), callback, self.describe(error));
    }

    fn describe(&self, error: &PyErr) -> Description {
        self.surroundings.failed(self.py, error);
        describe(self.py, error)
    }

    fn report_error(
        &self,
        protocol: String,
        descriptor: Option<&Descriptor>,
        callback: &'static str,
        failure: Description,
    ) {
        match descriptor.and_then(Descriptor::owner) {
            Some(owner) => owner.count(|counters| counters.exceptions.raise(1)),
            None => self.counters.exceptions.raise(1),
        }
        self.surroundings.report(Report {
            callback,
            protocol,
            fd: descriptor.map_or(-1, Descriptor::number),
            peer: descriptor
                .and_then(Descriptor::peer)
                .map_or_else(String::new, |peer| peer.to_string()),
            listener: descriptor
                .and_then(Descriptor::owner)
                .map_or_else(String::new, |owner| owner.service().name().to_owned()),
            failure,
        });
    }

    /// Marks a protocol closed, forgets it and tells it.
    fn end(&self, connection: &Connection<'py>, descriptor: &Descriptor, reason: Reason) {
        let names = &self.names;
        let protocol = &connection.protocol;
        let unlisted = self.unlist(protocol, descriptor);
        let ended = protocol
            .setattr(&names.closed, true)
            .and_then(|()| protocol.setattr(&names.close_reason, reason.to_string()))
            .and(unlisted);
        if let Err(error) = ended {
            self.report_failure(connection, descriptor, "connection_lost", &error);
        }
        let callback = Callback::ConnectionLost;
        let lost = self
            .activity
            .during(Some(callback), protocol, descriptor, || {
                protocol.call_method0(names.of(callback))
            });
        if let Err(error) = lost {
            self.report_failure(connection, descriptor, "connection_lost", &error);
        }
        self.note(descriptor, callback, (), None);
    }

    /// Takes a protocol off the list, unless its number has passed to another one.
    fn unlist(&self, protocol: &Bound<'py, PyAny>, descriptor: &Descriptor) -> PyResult<()> {
        let protocols = &self.names.protocols;
        match protocols.get_item(descriptor.number())? {
            Some(listed) if listed.is(protocol) => protocols.del_item(descriptor.number()),
            _ => Ok(()),
        }
    }

    fn open(
        &mut self,
        descriptor: &Arc<Descriptor>,
        info: &Value,
        recipe: Option<&Recipe>,
    ) -> Result<(Connection<'py>, Verdict), Refusal> {
        let factory = self.factory(recipe);
        let factory = factory.map_err(|error| self.not_made(None, descriptor, &error))?;
        let factory = factory.ok_or(Refusal::NoProtocolFactory)?;
        let peer = descriptor.peer();
        let peer = peer
            .map(|peer| buffer::address(self.py, &peer))
            .transpose()
            .map_err(|error| self.bad_info(descriptor, &error))?;
        let client_info = self
            .client_info(descriptor, peer.as_ref(), info, recipe)
            .map_err(|error| self.bad_info(descriptor, &error))?;
        let connection = self
            .make(&factory, descriptor)
            .map_err(|error| self.not_made(Some(&factory), descriptor, &error))?;
        // From here on there is a protocol, which hears of its end whatever comes.
        let action = self
            .introduce(
                &connection.protocol,
                descriptor,
                peer.as_ref(),
                &client_info,
            )
            .and_then(|()| {
                let (protocol, callback) = (&connection.protocol, Callback::ConnectionMade);
                let name = self.names.of(callback);
                let arguments = (descriptor.number(), &client_info);
                self.activity
                    .during(Some(callback), protocol, descriptor, || {
                        protocol.call_method1(name, arguments)
                    })
            })
            .and_then(|word| self.action(&connection, Callback::ConnectionMade, &word));
        if S::TAKES_NOTES {
            let arguments = (descriptor.number(), client_info);
            let told = action.as_ref().ok().copied();
            self.note(descriptor, Callback::ConnectionMade, arguments, told);
        }
        match action {
            Ok(action) => Ok((connection, Ok(action))),
            Err(error) => {
                let description = self.describe(&error);
                let protocol = class_name(&connection.protocol.get_type());
                let traceback = description.traceback.clone();
                self.report_error(protocol, Some(descriptor), "connection_made", description);
                if let Some(owner) = descriptor.owner() {
                    owner.is_refused();
                }
                self.end(&connection, descriptor, Reason::Exception);
                Err(Refusal::Protocol(traceback))
            }
        }
    }

    /// The factory failed, or what it returned is of no use.
    fn not_made(
        &self,
        factory: Option<&Factory<'py>>,
        descriptor: &Descriptor,
        error: &PyErr,
    ) -> Refusal {
        let protocol = factory.map_or_else(|| "?".to_owned(), Factory::name);
        let description = self.describe(error);
        let traceback = description.traceback.clone();
        self.report_error(protocol, Some(descriptor), "factory", description);
        Refusal::Protocol(traceback)
    }

    /// What the acceptor says of the client cannot be told in Python.
    fn bad_info(&self, descriptor: &Descriptor, error: &PyErr) -> Refusal {
        let description = self.describe(error);
        let message = description.message.clone();
        self.report_error("?".to_owned(), Some(descriptor), "client_info", description);
        Refusal::BadInfo(message)
    }
}

/// Nobody said what serves a client that a listener accepted.
fn no_factory() -> Description {
    Description {
        class: "RuntimeError".to_owned(),
        message: "no protocol factory: name a protocol for the listener, or call \
                  set_protocol_factory"
            .to_owned(),
        traceback: String::new(),
    }
}

impl<'py, S: Surroundings> Handler for PythonHandler<'py, S> {
    type Connection = Connection<'py>;
    type Opening = Opening;

    fn connected(
        &mut self,
        descriptor: &Arc<Descriptor>,
        opening: Opening,
    ) -> Option<(Connection<'py>, Verdict)> {
        let Opening {
            info,
            recipe,
            reply,
        } = opening;
        self.last.set(None);
        let activity = Arc::clone(&self.activity);
        let (opened, span) = activity.watch(self.py, None, || {
            self.open(descriptor, &info, recipe.as_deref())
        });
        self.surroundings.callback_returned();
        if let Some(owner) = descriptor.owner() {
            owner.count(|counters| counters.count_callback(span.nanos()));
        }
        match (opened, reply) {
            (Ok(opened), reply) => {
                if let Some(reply) = reply {
                    reply(Ok(()));
                }
                Some(opened)
            }
            (Err(refusal), Some(reply)) => {
                reply(Err(refusal));
                None
            }
            // Nobody waits: the log is where it can be found.
            (Err(Refusal::NoProtocolFactory), None) => {
                self.report_error("?".to_owned(), Some(descriptor), "factory", no_factory());
                None
            }
            // Reported where it happened.
            (Err(_), None) => None,
        }
    }

    fn readable(
        &mut self,
        connection: &mut Connection<'py>,
        descriptor: &Arc<Descriptor>,
        data: &[u8],
    ) -> Verdict {
        self.call_in(descriptor, || {
            if descriptor.kind().is_datagram() {
                return self.datagram(connection, descriptor, data);
            }
            let data = PyBytes::new(self.py, data);
            self.call(connection, descriptor, Callback::DataReceived, (data,))
        })
    }

    fn eof(&mut self, connection: &mut Connection<'py>, descriptor: &Arc<Descriptor>) -> Verdict {
        self.call_in(descriptor, || {
            self.call_alone(connection, descriptor, Callback::EofReceived)
        })
    }

    fn writable(
        &mut self,
        connection: &mut Connection<'py>,
        descriptor: &Arc<Descriptor>,
    ) -> Verdict {
        if !connection.sends_natively {
            let at_once = self.just_before(descriptor);
            return self.count_call(descriptor, at_once, || {
                self.call_alone(connection, descriptor, Callback::WriteReady)
            });
        }
        match self.flush(connection, descriptor) {
            Flushed::All => Ok(Action::ReadPending),
            Flushed::Blocked => Ok(Action::Continue),
            Flushed::Failed(reason) => Err(reason),
        }
    }

    fn flush(&mut self, connection: &mut Connection<'py>, descriptor: &Arc<Descriptor>) -> Flushed {
        if connection.buffers_plainly {
            // None of the user's code runs, so there is nothing to watch.
            return self.send_buffer(connection, descriptor);
        }
        self.watch(None, || self.send_buffer(connection, descriptor))
            .0
    }

    fn lost(&mut self, connection: Connection<'py>, descriptor: &Arc<Descriptor>, reason: Reason) {
        self.call_in(descriptor, || {
            self.end(&connection, descriptor, reason);
            // Nearly always the last reference: a `__del__` runs here.
            drop(connection);
        });
    }

    fn was_explicit(&self) -> bool {
        !self.said_nothing.get()
    }

    fn backlog(&mut self, connection: &mut Connection<'py>) -> Option<usize> {
        if !connection.sends_natively {
            return None;
        }
        // What is no bytearray is told when it is to be sent.
        let buffer = self.write_buffer(connection).ok()?;
        Some(buffer.len())
    }

    fn timeout(
        &mut self,
        connection: &mut Connection<'py>,
        descriptor: &Arc<Descriptor>,
    ) -> Verdict {
        self.call_in(descriptor, || {
            self.call_alone(connection, descriptor, Callback::TimeoutExpired)
        })
    }

    fn draining(
        &mut self,
        connection: &mut Connection<'py>,
        descriptor: &Arc<Descriptor>,
    ) -> Verdict {
        self.call_in(descriptor, || {
            self.call_alone(connection, descriptor, Callback::Draining)
        })
    }

    fn message(
        &mut self,
        connection: &mut Connection<'py>,
        descriptor: &Arc<Descriptor>,
        message: Payload,
    ) -> Verdict {
        self.call_in(descriptor, || {
            let message = match message.downcast::<Value>() {
                Ok(term) => value::to_python(self.py, &term, &self.types),
                Err(object) => match object.downcast::<Py<PyAny>>() {
                    Ok(object) => Ok(object.into_bound(self.py)),
                    // Nobody sends anything else.
                    Err(_) => return Ok(Action::Continue),
                },
            };
            match message {
                Ok(message) => self.call(
                    connection,
                    descriptor,
                    Callback::MessageReceived,
                    (message,),
                ),
                // It costs this message: the peer has no part in it.
                Err(error) => {
                    self.report_failure(connection, descriptor, "message_received", &error);
                    Ok(Action::Continue)
                }
            }
        })
    }

    fn errand(&mut self, errand: Payload) {
        let Ok(errand) = errand.downcast::<Errand>() else {
            return;
        };
        match *errand {
            Errand::Prepare { recipe, reply } => {
                self.last.set(None);
                let activity = Arc::clone(&self.activity);
                let (prepared, _) = activity.watch(self.py, None, || {
                    self.factory(Some(&recipe))
                        .map_err(|error| Refusal::Protocol(describe(self.py, &error).traceback))
                });
                self.surroundings.callback_returned();
                reply(prepared.map(|_| ()));
            }
            Errand::Forget { id } => self.factories.forget(id),
        }
    }

    fn panicked(&mut self, descriptor: Option<&Arc<Descriptor>>, message: &str) {
        self.surroundings
            .failed(self.py, &PyRuntimeError::new_err(message.to_owned()));
        let failure = Description {
            class: "panic".to_owned(),
            message: message.to_owned(),
            traceback: String::new(),
        };
        self.report_error(
            "?".to_owned(),
            descriptor.map(|known| &**known),
            "panic",
            failure,
        );
    }

    fn idle<T: Send>(&mut self, wait: impl FnOnce() -> T + Send) -> T {
        self.last.set(None);
        let surroundings = &self.surroundings;
        self.py.detach(|| {
            surroundings.resting();
            wait()
        })
    }
}

impl<'py, S: Surroundings> PythonHandler<'py, S> {
    fn datagram(
        &self,
        connection: &Connection<'py>,
        descriptor: &Arc<Descriptor>,
        data: &[u8],
    ) -> Verdict {
        let sender = self.sender(descriptor);
        let noted = sender.and_then(|sender| {
            connection.protocol.setattr(&self.names.peer, &sender)?;
            Ok(sender)
        });
        let sender = noted.map_err(|error| {
            self.report_failure(connection, descriptor, "datagram_received", &error);
            Reason::Exception
        })?;
        let bytes = PyBytes::new(self.py, data);
        if connection.takes_datagrams {
            self.call(
                connection,
                descriptor,
                Callback::DatagramReceived,
                (bytes, sender),
            )
        } else if data.is_empty() {
            Ok(Action::Continue)
        } else {
            self.call(connection, descriptor, Callback::DataReceived, (bytes,))
        }
    }

    fn sender(&self, descriptor: &Descriptor) -> PyResult<Bound<'py, PyAny>> {
        match descriptor.peer() {
            Some(peer) => Ok(buffer::address(self.py, &peer)?.into_any()),
            None => Ok(self.py.None().into_bound(self.py)),
        }
    }
}
