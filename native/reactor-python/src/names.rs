//! What the handler looks up in one interpreter: interned names, classes, the registry.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyType};
use reactor::Action;

/// A method of a protocol that the engine calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Callback {
    ConnectionMade,
    DataReceived,
    DatagramReceived,
    EofReceived,
    WriteReady,
    TimeoutExpired,
    Draining,
    MessageReceived,
    ConnectionLost,
}

impl Callback {
    pub(crate) const ALL: [Self; 9] = [
        Self::ConnectionMade,
        Self::DataReceived,
        Self::DatagramReceived,
        Self::EofReceived,
        Self::WriteReady,
        Self::TimeoutExpired,
        Self::Draining,
        Self::MessageReceived,
        Self::ConnectionLost,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ConnectionMade => "connection_made",
            Self::DataReceived => "data_received",
            Self::DatagramReceived => "datagram_received",
            Self::EofReceived => "eof_received",
            Self::WriteReady => "write_ready",
            Self::TimeoutExpired => "timeout_expired",
            Self::Draining => "draining",
            Self::MessageReceived => "message_received",
            Self::ConnectionLost => "connection_lost",
        }
    }
}

/// The objects of one interpreter that every event needs.
pub(crate) struct Names<'py> {
    pub(crate) protocol_class: Bound<'py, PyType>,
    pub(crate) registry: Bound<'py, PyAny>,
    pub(crate) protocols: Bound<'py, PyDict>,
    callbacks: [Bound<'py, PyString>; 9],
    actions: [Bound<'py, PyString>; 6],
    function: Bound<'py, PyString>,
    pub(crate) factory: Bound<'py, PyString>,
    pub(crate) handle: Bound<'py, PyString>,
    pub(crate) fd: Bound<'py, PyString>,
    pub(crate) peer: Bound<'py, PyString>,
    pub(crate) client_info: Bound<'py, PyString>,
    pub(crate) write_buffer: Bound<'py, PyString>,
    getattribute: Bound<'py, PyString>,
    pub(crate) closed: Bound<'py, PyString>,
    pub(crate) close_reason: Bound<'py, PyString>,
    pub(crate) addr: Bound<'py, PyString>,
    pub(crate) port: Bound<'py, PyString>,
    pub(crate) kind: Bound<'py, PyString>,
}

impl<'py> Names<'py> {
    pub(crate) fn new(py: Python<'py>) -> PyResult<Self> {
        let module = py.import("erlang.reactor")?;
        let registry = module.getattr("_registry")?;
        let protocols = registry.getattr("protocols")?.cast_into::<PyDict>()?;
        let name = |text: &str| PyString::intern(py, text);
        Ok(Self {
            protocol_class: module.getattr("Protocol")?.cast_into::<PyType>()?,
            registry,
            protocols,
            callbacks: Callback::ALL.map(|callback| name(callback.name())),
            actions: Action::ALL.map(|action| name(action.word())),
            function: name("__func__"),
            factory: name("factory"),
            handle: name("_handle"),
            fd: name("fd"),
            peer: name("peer"),
            client_info: name("client_info"),
            write_buffer: name("write_buffer"),
            getattribute: name("__getattribute__"),
            closed: name("closed"),
            close_reason: name("close_reason"),
            addr: name("addr"),
            port: name("port"),
            kind: name("type"),
        })
    }

    pub(crate) const fn of(&self, callback: Callback) -> &Bound<'py, PyString> {
        &self.callbacks[callback as usize]
    }

    /// Whether a protocol's `write_buffer` is the slot that `Protocol` has, found as Python finds
    /// attributes.
    pub(crate) fn buffers_plainly(&self, protocol: &Bound<'py, PyAny>) -> bool {
        let class = protocol.get_type();
        let is_inherited = |name: &Bound<'py, PyString>| {
            let inherited = self.protocol_class.getattr(name);
            matches!((class.getattr(name), inherited), (Ok(own), Ok(inherited)) if own.is(&inherited))
        };
        is_inherited(&self.write_buffer) && is_inherited(&self.getattribute)
    }

    /// The action whose interned word is this very object.
    pub(crate) fn action_of(&self, word: &Bound<'py, PyAny>) -> Option<Action> {
        let position = self.actions.iter().position(|action| action.is(word))?;
        Some(Action::ALL[position])
    }

    /// Whether a protocol's method is the one that `Protocol` itself has.
    pub(crate) fn inherits(&self, protocol: &Bound<'py, PyAny>, callback: Callback) -> bool {
        let name = self.of(callback);
        let function = protocol
            .getattr(name)
            .and_then(|method| method.getattr(&self.function));
        match (function, self.protocol_class.getattr(name)) {
            (Ok(own), Ok(inherited)) => own.is(&inherited),
            _ => false,
        }
    }
}
