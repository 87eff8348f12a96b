//! Single connections, as Erlang knows them: a reference to each, and messages both ways.
//!
//! A connection has one reference, made when it first goes to Erlang: so it can be compared, and
//! be the key of a map. The reference lives for as long as somebody holds it and does not keep the
//! connection open; when that is over it leads nowhere.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use reactor::{Link, PushError, Reason, SendError, Watcher};
use reactor_python::value::Value;
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc, Term};

use crate::beam::post::post;

mod atoms {
    rustler::atoms! { down = "DOWN", connection, noproc, failed }
}

/// What Erlang holds of a connection.
pub(crate) struct Connection {
    id: u64,
    link: Weak<Link>,
}

#[rustler::resource_impl(name = "py_reactor_connection_reference")]
impl Resource for Connection {}

impl Connection {
    /// No connection at all.
    pub(crate) const fn nobody() -> Self {
        Self {
            id: 0,
            link: Weak::new(),
        }
    }

    /// The one reference of a connection.
    pub(crate) fn of(link: &Arc<Link>) -> Option<ResourceArc<Self>> {
        let made = || {
            ResourceArc::new(Self {
                id: link.id(),
                link: Arc::downgrade(link),
            })
        };
        link.companion(made).cloned()
    }

    /// The connection in a term, if that is what it is.
    pub(crate) fn in_term(term: Term<'_>) -> Option<Arc<Link>> {
        let reference: ResourceArc<Self> = term.decode().ok()?;
        Some(reference.link.upgrade().unwrap_or_else(|| {
            let link = Link::broken(reference.id);
            // Should it go back to Erlang, it is the same reference again.
            link.companion(|| reference.clone());
            link
        }))
    }

    fn link(&self) -> Result<Arc<Link>, SendError> {
        self.link.upgrade().ok_or(SendError::Closed)
    }

    /// Gives the protocol a message.
    pub(crate) fn send(&self, message: Value) -> Result<(), SendError> {
        self.link()?.send(Box::new(message))
    }

    /// Gives the connection bytes to send.
    pub(crate) fn push(&self, bytes: &[u8]) -> Result<(), PushError> {
        let link = self.link().map_err(|_| PushError::Closed)?;
        link.push(bytes)
    }

    /// Closes the connection when what it has to send is sent.
    pub(crate) fn close(&self) -> Result<(), SendError> {
        self.link()?.close()
    }
}

/// The wish of one process to know when a connection is over.
pub(crate) struct Watch {
    watcher: LocalPid,
    stage: AtomicU8,
    monitor: OnceLock<Monitor>,
}

const WAITING: u8 = 0;
/// The message is on its way into the mailbox.
const TELLING: u8 = 1;
const TOLD: u8 = 2;
/// The watcher is dead, or changed its mind.
const STALE: u8 = 3;

/// What became of a watch that is not wanted any more.
#[derive(Clone, Copy)]
pub(crate) enum Cancelled {
    /// No message was sent and none will be.
    Unsent,
    /// It is being sent.
    Sending,
    /// It is in the mailbox, or was.
    Sent,
}

#[rustler::resource_impl(name = "py_reactor_connection_monitor")]
impl Resource for Watch {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _watcher: LocalPid, _monitor: Monitor) {
        self.cancel();
    }
}

impl Watch {
    /// The calling process gets `{'DOWN', Watch, connection, Connection, Reason}` once, at once if
    /// the connection is over.
    pub(crate) fn start(env: Env<'_>, connection: ResourceArc<Connection>) -> ResourceArc<Self> {
        let watch = ResourceArc::new(Self {
            watcher: env.pid(),
            stage: AtomicU8::new(WAITING),
            monitor: OnceLock::new(),
        });
        // Without a monitor the process is dying: the message will go nowhere, which is right.
        if let Some(monitor) = env.monitor(&watch, &watch.watcher) {
            let _ = watch.monitor.set(monitor);
        }
        let told = Told {
            watch: watch.clone(),
            connection: connection.clone(),
        };
        let watched = connection
            .link()
            .and_then(|link| link.watch(Box::new(told)));
        if watched.is_err() {
            watch.stage.store(TOLD, Ordering::Release);
            let reason = atoms::noproc().encode(env);
            let message = down(env, &watch, &connection, reason);
            // The only error is a receiver that is gone, and it is the caller.
            let _ = env.send(&watch.watcher, message);
        }
        watch
    }

    /// No message is wanted any more.
    pub(crate) fn cancel(&self) -> Cancelled {
        match self.advance(WAITING, STALE) {
            Ok(()) | Err(STALE) => Cancelled::Unsent,
            Err(TELLING) => Cancelled::Sending,
            Err(_) => Cancelled::Sent,
        }
    }

    fn advance(&self, from: u8, to: u8) -> Result<(), u8> {
        self.stage
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

/// The connection's end of a [`Watch`].
struct Told {
    watch: ResourceArc<Watch>,
    connection: ResourceArc<Connection>,
}

impl Watcher for Told {
    fn is_stale(&self) -> bool {
        self.watch.stage.load(Ordering::Acquire) == STALE
    }

    fn ended(self: Box<Self>, reason: Reason) {
        let Self { watch, connection } = *self;
        if watch.advance(WAITING, TELLING).is_err() {
            return;
        }
        let told = watch.clone();
        post(watch.watcher, move |env| {
            let reason = encode_reason(env, reason);
            down(env, &watch, &connection, reason)
        });
        // A worker sends by itself, so the message is there.
        told.stage.store(TOLD, Ordering::Release);
        if let Some(monitor) = told.monitor.get() {
            told.demonitor(None, monitor);
        }
    }
}

fn down<'a>(
    env: Env<'a>,
    watch: &ResourceArc<Watch>,
    connection: &ResourceArc<Connection>,
    reason: Term<'a>,
) -> Term<'a> {
    (
        atoms::down(),
        watch,
        atoms::connection(),
        connection,
        reason,
    )
        .encode(env)
}

/// An atom, or `{failed, Text}`.
fn encode_reason(env: Env<'_>, reason: Reason) -> Term<'_> {
    match (reason.name(), reason) {
        ("failed", Reason::Failed(errno)) => (atoms::failed(), errno.desc()).encode(env),
        (name, _) => match rustler::Atom::from_str(env, name) {
            Ok(atom) => atom.encode(env),
            Err(_) => name.encode(env),
        },
    }
}
