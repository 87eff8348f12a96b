//! A server: it owns the reactor and the acceptor, and orders their start and their end.
//!
//! At the end the listening socket goes first, after whoever waits in its backlog was let in:
//! closed with clients in there the kernel would reset them. Then those that are there are asked
//! to end, and those that have not ended at the deadline are closed.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::acceptor::{Acceptor, Admitted, Endpoint, ListenOptions};
use crate::address::Address;
use crate::counters::Counters;
use crate::event_handler::{EventHandler, Events};
use crate::handler::Handler;
use crate::inbox::Door;
use crate::reactor::Reactor;
use crate::service::{Limits, Service, Stage};
use crate::source::{Offer, Source};

/// How long nobody is accepted after the process or the kernel was short of something. What is
/// missing comes back when a connection ends; until then each try costs a system call.
const REST: Duration = Duration::from_millis(100);

/// How a server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// By which its service is known in reports.
    pub name: String,
    /// How to listen.
    pub listen: ListenOptions,
    /// What connections may do.
    pub limits: Limits,
    /// Connections that may be open at one time. The next client waits in the backlog.
    pub max_connections: u64,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            name: String::new(),
            listen: ListenOptions::default(),
            limits: Limits::default(),
            max_connections: u64::MAX,
        }
    }
}

type Opening<O> = Arc<dyn Fn() -> O + Send + Sync>;

/// Accepts connections and serves them, on the thread that runs it.
///
/// All of it may be used from any thread, also while it runs: share it in an [`Arc`].
pub struct Server<O = Box<dyn EventHandler>> {
    reactor: Reactor<O>,
    service: Arc<Service>,
    opening: Opening<O>,
    listen: ListenOptions,
    address: Address,
    /// The listening socket that came from elsewhere, if that is what it accepts from.
    inherited: Option<OwnedFd>,
    life: Mutex<Life>,
    /// What accept(2) failed for last time, or 0.
    shortage: Arc<AtomicI32>,
}

/// What one run stands on.
#[derive(Default)]
struct Life {
    /// Until it is to stop.
    acceptor: Option<Arc<Acceptor>>,
    runs: bool,
    /// It is to stop, and to be done with it then.
    deadline: Option<Instant>,
}

impl<O: Send + 'static> Server<O> {
    /// Listens. Clients are accepted once it is run; until then they wait in the backlog.
    /// `opening` makes what the handler's [`connected`](Handler::connected) gets for each of them.
    ///
    /// # Errors
    /// The address is in use or not ours, the path cannot be made, or the process has no
    /// descriptor left.
    pub fn new(
        endpoint: &Endpoint,
        options: ServerOptions,
        opening: impl Fn() -> O + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let acceptor = Acceptor::open(endpoint, &options.listen)?;
        Self::with(acceptor, None, options, opening)
    }

    /// The same on a socket that listens already, from which other processes may accept too: those
    /// who wait in its backlog at the end are left to them.
    ///
    /// # Errors
    /// It does not listen, or the process has no descriptor left.
    pub fn inherit(
        socket: OwnedFd,
        options: ServerOptions,
        opening: impl Fn() -> O + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let acceptor = Acceptor::inherit(socket.try_clone()?)?;
        Self::with(acceptor, Some(socket), options, opening)
    }

    fn with(
        acceptor: Acceptor,
        inherited: Option<OwnedFd>,
        options: ServerOptions,
        opening: impl Fn() -> O + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let address = acceptor.address()?;
        let life = Life {
            acceptor: Some(Arc::new(acceptor)),
            ..Life::default()
        };
        Ok(Self {
            reactor: Reactor::open()?,
            service: Service::new(options.name, options.limits, options.max_connections),
            opening: Arc::new(opening),
            listen: options.listen,
            address,
            inherited,
            life: Mutex::new(life),
            shortage: Arc::default(),
        })
    }

    /// Where it listens, with the port that the kernel chose.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// What it waits and serves with. Descriptors that come in there are closed when it stops, but
    /// it does not wait for them.
    #[must_use]
    pub const fn reactor(&self) -> &Reactor<O> {
        &self.reactor
    }

    /// What its connections share.
    #[must_use]
    pub const fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// What it counts, in all of its runs.
    #[must_use]
    pub const fn counters(&self) -> &Arc<Counters> {
        self.reactor.counters()
    }

    /// What is missing to accept clients, for instance EMFILE; `None` once one was accepted.
    #[must_use]
    pub fn shortage(&self) -> Option<Errno> {
        match self.shortage.load(Ordering::Relaxed) {
            0 => None,
            errno => Some(Errno::from_raw(errno)),
        }
    }

    /// Accepts nobody any more, has the connections drained for at most `within`, then closes
    /// those that are left. Returns at once, with the listening socket closed, also while a handler
    /// holds the run up; the run ends when the rest is done. Whoever asks again may only shorten the
    /// time. Before the first run: that one will end like this; between two runs it does nothing.
    pub fn stop(&self, within: Duration) {
        let mut life = self.life.lock();
        if life.acceptor.is_none() && !life.runs {
            return;
        }
        // Without a deadline it drains for as long as it takes.
        let far = Duration::from_secs(60 * 60 * 24 * 365);
        let deadline = Instant::now() + within.min(far);
        life.deadline = Some(life.deadline.map_or(deadline, |set| set.min(deadline)));
        // Under the lock, as the end of a run sets it back. Who has no time to end is not asked to.
        if !within.is_zero() {
            self.service.set_stage(Stage::Draining);
        }
        // A run that has yet to begin closes it.
        let acceptor = if life.runs {
            life.acceptor.take()
        } else {
            None
        };
        drop(life);
        let door = self.reactor.door();
        if let Some(acceptor) = acceptor {
            self.close(&acceptor, &door);
        }
        door.mailbox().review();
    }

    /// Listens no more.
    fn close(&self, acceptor: &Acceptor, door: &Door<O>) {
        if !acceptor.is_shared() {
            self.let_in(acceptor, door);
        }
        acceptor.shut();
        // Whoever holds the last descriptor for a moment, as each use of a link does, ends its
        // connection on a thread that the run does not hear of otherwise.
        let (run, ended) = (Arc::clone(door.mailbox()), Arc::clone(door.mailbox()));
        self.service.when_active(
            0..=0,
            Box::new(move || ended.is_stopping()),
            Box::new(move |_| run.review()),
        );
    }

    /// Accepts those who wait in the backlog: no more than it holds, for others may come without
    /// end.
    fn let_in(&self, acceptor: &Acceptor, door: &Door<O>) {
        for _ in 0..self.listen.backlog {
            let Admitted::Connection(descriptor, admission) = acceptor.admit(&self.service) else {
                return;
            };
            // Should its queue be full the reactor has not come round to those before for long.
            if door.admit(descriptor, (self.opening)(), admission).is_err() {
                return;
            }
        }
    }

    /// Serves with `handler` until it is stopped. It may then be called again, and listens on the
    /// same address. `between` is called between turns; if it breaks, everything is closed at once.
    ///
    /// # Errors
    /// It runs already, it cannot listen again, the listening socket broke, the process has no
    /// descriptor left, or the poller failed. Every connection is closed then.
    pub fn run_with<H: Handler<Opening = O>>(
        &self,
        handler: &mut H,
        mut between: impl FnMut() -> ControlFlow<()>,
    ) -> io::Result<()> {
        let run = Run::begin(self)?;
        let mut lent = false;
        self.reactor.turns(handler, |door| {
            if !lent {
                lent = true;
                run.lend(door);
            }
            run.go_on(door, &mut between)
        })?;
        match run.broken.load(Ordering::Relaxed) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// The listening socket of the next run.
    fn listen(&self, life: &mut Life) -> io::Result<Arc<Acceptor>> {
        if let Some(acceptor) = &life.acceptor {
            return Ok(Arc::clone(acceptor));
        }
        let acceptor = Arc::new(match &self.inherited {
            Some(socket) => Acceptor::inherit(socket.try_clone()?)?,
            None => Acceptor::open(&self.endpoint(), &self.listen)?,
        });
        life.acceptor = Some(Arc::clone(&acceptor));
        Ok(acceptor)
    }

    fn endpoint(&self) -> Endpoint {
        match &self.address {
            Address::Inet(address) => Endpoint::Tcp(*address),
            Address::Unix(path) => Endpoint::Unix(path.clone()),
        }
    }
}

impl Server {
    /// Listens, to serve each client with a new handler.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn open<E: EventHandler + 'static>(
        endpoint: &Endpoint,
        options: ServerOptions,
        handler: impl Fn() -> E + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Self::new(endpoint, options, move || Box::new(handler()))
    }

    /// Serves until it is [stopped](Self::stop). It may then be called again.
    ///
    /// # Errors
    /// As [`run_with`](Self::run_with).
    pub fn run(&self) -> io::Result<()> {
        self.run_with(&mut Events, || ControlFlow::Continue(()))
    }
}

impl<O> fmt::Debug for Server<O> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Server")
            .field("address", &self.address)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// One run of a server, from its first turn to the end of its last connection.
struct Run<'a, O: Send + 'static> {
    server: &'a Server<O>,
    /// Weak: the socket is closed as soon as it is to be, whoever still waits for a place.
    acceptor: Weak<Acceptor>,
    /// Why the listening socket failed, or 0.
    broken: Arc<AtomicI32>,
}

impl<'a, O: Send + 'static> Run<'a, O> {
    fn begin(server: &'a Server<O>) -> io::Result<Self> {
        let mut life = server.life.lock();
        if life.runs {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the server runs already",
            ));
        }
        let acceptor = server.listen(&mut life)?;
        // Whoever stops it from here on hands those in the backlog to this run, not to the last one.
        server.reactor.prepare()?;
        life.runs = true;
        Ok(Self {
            server,
            acceptor: Arc::downgrade(&acceptor),
            broken: Arc::default(),
        })
    }

    fn lend(&self, door: &Door<O>) {
        let clients = Clients {
            acceptor: Weak::clone(&self.acceptor),
            service: Arc::clone(&self.server.service),
            opening: Arc::clone(&self.server.opening),
            door: door.clone(),
            shortage: Arc::clone(&self.server.shortage),
            broken: Arc::clone(&self.broken),
        };
        clients.lend();
    }

    /// Between two turns: whether there is another one, and how long it may sleep.
    fn go_on(
        &self,
        door: &Door<O>,
        between: &mut impl FnMut() -> ControlFlow<()>,
    ) -> ControlFlow<(), Option<Duration>> {
        if between().is_break() || self.broken.load(Ordering::Relaxed) != 0 {
            return ControlFlow::Break(());
        }
        let (deadline, acceptor) = {
            let mut life = self.server.life.lock();
            let Some(deadline) = life.deadline else {
                return ControlFlow::Continue(None);
            };
            (deadline, life.acceptor.take())
        };
        if let Some(acceptor) = acceptor {
            // It was stopped before it ran.
            self.server.close(&acceptor, door);
            door.mailbox().review();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if self.server.service.active() == 0 || left.is_zero() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(Some(left))
    }
}

impl<O: Send + 'static> Drop for Run<'_, O> {
    fn drop(&mut self) {
        let mut life = self.server.life.lock();
        if let Some(acceptor) = life.acceptor.take() {
            acceptor.shut();
        }
        *life = Life::default();
        self.server.service.set_stage(Stage::Serving);
    }
}

/// The reactor's end of the listening socket.
struct Clients<O: Send + 'static> {
    acceptor: Weak<Acceptor>,
    service: Arc<Service>,
    opening: Opening<O>,
    door: Door<O>,
    shortage: Arc<AtomicI32>,
    broken: Arc<AtomicI32>,
}

impl<O: Send + 'static> Clients<O> {
    /// Has the reactor accept, until there is no place left or the server stops.
    fn lend(self) {
        if let Some(acceptor) = self.acceptor.upgrade() {
            let door = self.door.clone();
            door.lend(Box::new(Listening {
                acceptor,
                clients: Some(self),
            }));
        }
    }
}

/// The listening socket while the reactor has it.
struct Listening<O: Send + 'static> {
    acceptor: Arc<Acceptor>,
    /// Until it is given back.
    clients: Option<Clients<O>>,
}

impl<O: Send + 'static> Source<O> for Listening<O> {
    fn accept(&mut self) -> Offer<O> {
        let Some(clients) = &self.clients else {
            return Offer::Over;
        };
        match self.acceptor.admit(&clients.service) {
            Admitted::Connection(descriptor, admission) => {
                clients.shortage.store(0, Ordering::Relaxed);
                Offer::Connection {
                    descriptor,
                    opening: (clients.opening)(),
                    admission,
                }
            }
            Admitted::Empty => Offer::Empty,
            Admitted::Exhausted(errno) => {
                clients.shortage.store(errno as i32, Ordering::Relaxed);
                Offer::Later(REST)
            }
            Admitted::Full => {
                if let Some(clients) = self.clients.take() {
                    let service = Arc::clone(&clients.service);
                    service.when_free(Box::new(move || clients.lend()));
                }
                Offer::Over
            }
            Admitted::Failed(errno) => {
                if !self.acceptor.is_shut() {
                    clients.broken.store(errno as i32, Ordering::Relaxed);
                }
                Offer::Over
            }
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.acceptor.as_fd()
    }
}
