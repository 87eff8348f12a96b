//! An engine by itself: whoever calls [`run`](Reactor::run) is its thread.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;

use crate::counters::Counters;
use crate::demultiplexer::NoDemultiplexer;
use crate::descriptor::Descriptor;
use crate::engine::{Engine, Groundwork, Settings, Turn};
use crate::event_handler::{EventHandler, Events};
use crate::handler::Handler;
use crate::inbox::{Door, SendError};
use crate::kind::AdoptError;
use crate::link::Link;
use crate::source::{Offer, Source};

/// Why a descriptor was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterError {
    /// It cannot be served, or is served already.
    Descriptor(AdoptError),
    /// The reactor has stopped, or more descriptors wait for it than may.
    Reactor(SendError),
}

impl fmt::Display for RegisterError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor(error) => error.fmt(out),
            Self::Reactor(error) => error.fmt(out),
        }
    }
}

impl std::error::Error for RegisterError {}

/// Waits for descriptors to become ready and calls their handlers, on the thread that runs it.
///
/// All of it may be used from any thread, also while it runs.
pub struct Reactor<O = Box<dyn EventHandler>> {
    life: Mutex<Life<O>>,
    counters: Arc<Counters>,
    bells: Mutex<Vec<Arc<OwnedFd>>>,
}

/// What one run stands on, and how it is reached.
struct Life<O> {
    /// Taken by the run.
    groundwork: Option<Groundwork<O>>,
    door: Door<O>,
    runs: bool,
}

impl<O> Life<O> {
    fn new(counters: &Arc<Counters>) -> io::Result<Self> {
        let settings = Settings {
            max_connections: usize::MAX,
            linger: None,
        };
        let (groundwork, door) = Groundwork::lay_with(settings, Arc::clone(counters))?;
        Ok(Self {
            groundwork: Some(groundwork),
            door,
            runs: false,
        })
    }
}

impl<O: Send + 'static> Reactor<O> {
    /// A reactor that serves nobody yet.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn open() -> io::Result<Self> {
        let counters = Arc::default();
        Ok(Self {
            life: Mutex::new(Life::new(&counters)?),
            counters,
            bells: Mutex::default(),
        })
    }

    /// Where descriptors are handed in to the present run, or, before the first one, to that.
    #[must_use]
    pub fn door(&self) -> Door<O> {
        self.life.lock().door.clone()
    }

    /// What it counts, in all of its runs.
    #[must_use]
    pub const fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Has the run that goes on close every connection and end. Before the first run: has that
    /// end at once. Between two runs it does nothing.
    pub fn stop(&self) {
        self.door().mailbox().stop();
    }

    /// Watches a descriptor of which only its readiness counts: what it brings is read and thrown
    /// away, and `between` of [`run_with`](Self::run_with) is called. Python's
    /// `signal.set_wakeup_fd` has the other end of such a one.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub fn wake_on(&self, bell: OwnedFd) -> io::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&bell, FcntlArg::F_GETFL)?);
        fcntl(&bell, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let bell = Arc::new(bell);
        self.bells.lock().push(Arc::clone(&bell));
        self.door().lend(Box::new(Bell(bell)));
        Ok(())
    }

    /// Serves with `handler` until it is stopped, and may then be called again. `between` is
    /// called between turns; if it breaks, every connection is closed, and that is the end.
    ///
    /// # Errors
    /// It runs already, the process has no descriptor left, or the poller failed. Every connection
    /// is closed then.
    pub fn run_with<H: Handler<Opening = O>>(
        &self,
        handler: &mut H,
        mut between: impl FnMut() -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.turns(handler, |_| between().map_continue(|()| None))
    }

    /// Serves until it is stopped. `between` is called before each turn and says how long that one
    /// may sleep; if it breaks, every connection is closed.
    pub(crate) fn turns<H: Handler<Opening = O>>(
        &self,
        handler: &mut H,
        mut between: impl FnMut(&Door<O>) -> ControlFlow<(), Option<Duration>>,
    ) -> io::Result<()> {
        let (groundwork, door) = self.begin()?;
        let _end = End(self);
        let mut engine = Engine::on(groundwork, NoDemultiplexer);
        loop {
            let limit = match between(&door) {
                ControlFlow::Continue(limit) => limit,
                ControlFlow::Break(()) => {
                    door.mailbox().stop();
                    None
                }
            };
            if engine.turn(handler, limit)? == Turn::Stopped {
                return Ok(());
            }
        }
    }

    /// Opens the door of the next run, unless it is open or one goes on.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let mut life = self.life.lock();
        if life.runs {
            Ok(())
        } else {
            self.lay(&mut life)
        }
    }

    fn lay(&self, life: &mut Life<O>) -> io::Result<()> {
        if life.groundwork.is_none() {
            *life = Life::new(&self.counters)?;
            for bell in &*self.bells.lock() {
                life.door.lend(Box::new(Bell(Arc::clone(bell))));
            }
        }
        Ok(())
    }

    fn begin(&self) -> io::Result<(Groundwork<O>, Door<O>)> {
        let mut life = self.life.lock();
        if life.runs {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "the reactor runs already",
            ));
        }
        self.lay(&mut life)?;
        let groundwork = life.groundwork.take().expect("it is laid");
        life.runs = true;
        Ok((groundwork, life.door.clone()))
    }
}

impl Reactor {
    /// Serves a descriptor, a duplicate of which is the reactor's from here on; `descriptor`
    /// itself is closed. The link is what it is known by: [`Link::close`] and [`Link::abort`] take
    /// it out again, and no event reaches its handler after that.
    ///
    /// # Errors
    /// It cannot be served, is registered already, under whatever number, or the reactor has
    /// stopped.
    pub fn register(
        &self,
        descriptor: impl Into<OwnedFd>,
        handler: impl EventHandler + 'static,
    ) -> Result<Arc<Link>, RegisterError> {
        let descriptor = descriptor.into();
        let adopted = Descriptor::adopt(descriptor.as_fd()).map_err(RegisterError::Descriptor)?;
        drop(descriptor);
        let link = Arc::clone(adopted.link());
        self.door()
            .hand_in(adopted, Box::new(handler))
            .map_err(|(error, _)| RegisterError::Reactor(error))?;
        Ok(link)
    }

    /// Waits for events and calls the handlers, until [`stop`](Self::stop). It may then be called
    /// again.
    ///
    /// # Errors
    /// As [`run_with`](Self::run_with).
    pub fn run(&self) -> io::Result<()> {
        self.run_with(&mut Events, || ControlFlow::Continue(()))
    }
}

impl<O> fmt::Debug for Reactor<O> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Reactor").finish_non_exhaustive()
    }
}

/// The end of a run, however it comes.
struct End<'a, O>(&'a Reactor<O>);

impl<O> Drop for End<'_, O> {
    fn drop(&mut self) {
        self.0.life.lock().runs = false;
    }
}

/// A source that has nobody to offer and is emptied whenever it is ready.
struct Bell(Arc<OwnedFd>);

impl<O> Source<O> for Bell {
    fn accept(&mut self) -> Offer<O> {
        let mut rung = [0; 512];
        loop {
            match nix::unistd::read(&*self.0, &mut rung) {
                Ok(0) => return Offer::Over,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Offer::Empty,
                Err(_) => return Offer::Over,
            }
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
