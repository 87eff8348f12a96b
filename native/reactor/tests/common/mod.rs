//! A small world to test the engine in: an echo handler whose answers each test scripts,
//! a demultiplexer on a thread of its own, and turns that go on until a fact holds.
// Every test program uses its own part of this.
#![allow(dead_code)]

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use reactor::{
    Action, Demultiplexer, Descriptor, Door, Engine, Flushed, Handler, Interest, Key, Mailbox,
    NoDemultiplexer, Owner, Payload, Readiness, Reason, SendError, Service, Settings, Turn,
    Verdict,
};

/// After this long a fact will not come true any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a turn may sleep while the test itself has something to do.
const NAP: Duration = Duration::from_millis(1);

/// Takes a lock that a failed test may have poisoned.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What happened to one connection.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) connected: AtomicUsize,
    pub(crate) readable: AtomicUsize,
    pub(crate) eof: AtomicUsize,
    pub(crate) writable: AtomicUsize,
    pub(crate) flushes: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
    pub(crate) lost: AtomicUsize,
    pub(crate) timeouts: AtomicUsize,
    pub(crate) messages: Mutex<Vec<String>>,
    pub(crate) reasons: Mutex<Vec<Reason>>,
    pub(crate) panics: AtomicUsize,
    descriptor: Mutex<Weak<Descriptor>>,
}

impl Record {
    pub(crate) fn is_lost(&self) -> bool {
        count(&self.lost) > 0
    }

    pub(crate) fn reason(&self) -> Reason {
        *lock(&self.reasons).last().expect("the connection is lost")
    }

    pub(crate) fn calls(&self) -> usize {
        [&self.readable, &self.eof, &self.writable, &self.flushes]
            .into_iter()
            .map(count)
            .sum()
    }

    pub(crate) fn descriptor(&self) -> Arc<Descriptor> {
        lock(&self.descriptor)
            .upgrade()
            .expect("the descriptor is alive")
    }

    /// Gives the connection an action from outside.
    pub(crate) fn resume(&self, action: Action) {
        self.descriptor()
            .owner()
            .expect("an engine has it")
            .resume(action)
            .expect("the inbox has room");
    }
}

pub(crate) fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

fn add(counter: &AtomicUsize, amount: usize) {
    counter.fetch_add(amount, Ordering::SeqCst);
}

/// The protocol's side of one connection.
pub(crate) struct Talk {
    pub(crate) outbox: VecDeque<Vec<u8>>,
    pub(crate) heard: Vec<u8>,
    pub(crate) record: Arc<Record>,
    script: Script,
}

impl Talk {
    /// Sends what is there; `false` if the kernel takes no more.
    pub(crate) fn send(&mut self, descriptor: &Descriptor) -> Result<bool, Errno> {
        while let Some(front) = self.outbox.front_mut() {
            let sent = match descriptor.send(front) {
                Err(_) if descriptor.fault().is_none() && !descriptor.is_gone() => front.len(),
                other => other?,
            };
            if sent == front.len() && !(sent == 0 && descriptor.is_blocked()) {
                self.outbox.pop_front();
            } else {
                front.drain(..sent);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What an echo does with the data it just heard.
    pub(crate) fn echo(&mut self) -> Verdict {
        self.outbox.push_back(self.heard.clone());
        Ok(Action::WritePending)
    }

    /// What an echo does when there is room.
    pub(crate) fn write(&mut self, descriptor: &Descriptor) -> Verdict {
        match self.send(descriptor) {
            Ok(true) => Ok(Action::ReadPending),
            Ok(false) => Ok(Action::Continue),
            Err(errno) => Err(Reason::Failed(errno)),
        }
    }
}

type Reaction = Box<dyn FnMut(&mut Talk, &Arc<Descriptor>) -> Verdict + Send>;

/// What a test wants to happen in a callback; an echo does the rest.
#[derive(Default)]
pub(crate) struct Script {
    connected: Option<Reaction>,
    readable: Option<Reaction>,
    eof: Option<Reaction>,
    writable: Option<Reaction>,
    flush: Option<Reaction>,
    lost: Option<Reaction>,
    timeout: Option<Reaction>,
    draining: Option<Reaction>,
    refuses: bool,
    reads_on: bool,
}

macro_rules! reactions {
    ($($name:ident $set:ident,)*) => {
        impl Script {
            $(pub(crate) fn $name(
                mut self,
                reaction: impl FnMut(&mut Talk, &Arc<Descriptor>) -> Verdict + Send + 'static,
            ) -> Self {
                self.$set = Some(Box::new(reaction));
                self
            })*
        }
    };
}

reactions! {
    on_connected connected,
    on_data readable,
    on_eof eof,
    on_room writable,
    on_flush flush,
    on_lost lost,
    on_timeout timeout,
    on_draining draining,
}

impl Script {
    pub(crate) fn echo() -> Self {
        Self::default()
    }

    /// Tells how much it has to write, so that it is read meanwhile.
    pub(crate) fn reads_on(mut self) -> Self {
        self.reads_on = true;
        self
    }

    pub(crate) fn refusal() -> Self {
        Self {
            refuses: true,
            ..Self::default()
        }
    }
}

/// Serves every connection as its script says.
#[derive(Default)]
pub(crate) struct Echo {
    pub(crate) panics: Vec<String>,
    pub(crate) naps: usize,
    pub(crate) errands: Vec<String>,
}

pub(crate) fn owner(descriptor: &Descriptor) -> &Owner {
    descriptor.owner().expect("an engine has it")
}

impl Echo {
    fn play(
        talk: &mut Talk,
        descriptor: &Arc<Descriptor>,
        part: fn(&mut Script) -> &mut Option<Reaction>,
    ) -> Option<Verdict> {
        let mut reaction = part(&mut talk.script).take()?;
        let verdict = reaction(talk, descriptor);
        *part(&mut talk.script) = Some(reaction);
        Some(verdict)
    }
}

impl Handler for Echo {
    type Connection = Talk;
    type Opening = (Script, Arc<Record>);

    fn connected(
        &mut self,
        descriptor: &Arc<Descriptor>,
        (script, record): Self::Opening,
    ) -> Option<(Talk, Verdict)> {
        add(&record.connected, 1);
        *lock(&record.descriptor) = Arc::downgrade(descriptor);
        if script.refuses {
            return None;
        }
        let mut talk = Talk {
            outbox: VecDeque::new(),
            heard: Vec::new(),
            record,
            script,
        };
        let verdict = Self::play(&mut talk, descriptor, |script| &mut script.connected)
            .unwrap_or(Ok(Action::ReadPending));
        Some((talk, verdict))
    }

    fn readable(&mut self, talk: &mut Talk, descriptor: &Arc<Descriptor>, data: &[u8]) -> Verdict {
        add(&talk.record.readable, 1);
        add(&talk.record.bytes, data.len());
        talk.heard = data.to_vec();
        Self::play(talk, descriptor, |script| &mut script.readable).unwrap_or_else(|| talk.echo())
    }

    fn eof(&mut self, talk: &mut Talk, descriptor: &Arc<Descriptor>) -> Verdict {
        add(&talk.record.eof, 1);
        Self::play(talk, descriptor, |script| &mut script.eof).unwrap_or(Ok(Action::Close))
    }

    fn writable(&mut self, talk: &mut Talk, descriptor: &Arc<Descriptor>) -> Verdict {
        add(&talk.record.writable, 1);
        Self::play(talk, descriptor, |script| &mut script.writable)
            .unwrap_or_else(|| talk.write(descriptor))
    }

    fn flush(&mut self, talk: &mut Talk, descriptor: &Arc<Descriptor>) -> Flushed {
        add(&talk.record.flushes, 1);
        if let Some(Err(reason)) = Self::play(talk, descriptor, |script| &mut script.flush) {
            return Flushed::Failed(reason);
        }
        match talk.send(descriptor) {
            Ok(true) => Flushed::All,
            Ok(false) => Flushed::Blocked,
            Err(errno) => Flushed::Failed(Reason::Failed(errno)),
        }
    }

    fn lost(&mut self, mut talk: Talk, descriptor: &Arc<Descriptor>, reason: Reason) {
        lock(&talk.record.reasons).push(reason);
        add(&talk.record.lost, 1);
        Self::play(&mut talk, descriptor, |script| &mut script.lost);
    }

    fn backlog(&mut self, talk: &mut Talk) -> Option<usize> {
        let waiting = talk.outbox.iter().map(Vec::len).sum();
        talk.script.reads_on.then_some(waiting)
    }

    fn timeout(&mut self, talk: &mut Talk, descriptor: &Arc<Descriptor>) -> Verdict {
        add(&talk.record.timeouts, 1);
        Self::play(talk, descriptor, |script| &mut script.timeout).unwrap_or(Ok(Action::Close))
    }

    fn draining(&mut self, talk: &mut Talk, descriptor: &Arc<Descriptor>) -> Verdict {
        Self::play(talk, descriptor, |script| &mut script.draining).unwrap_or_else(|| {
            owner(descriptor).close_when_idle();
            Ok(Action::Continue)
        })
    }

    /// A text is noted and sent to the peer.
    fn message(&mut self, talk: &mut Talk, _: &Arc<Descriptor>, message: Payload) -> Verdict {
        let text = message.downcast::<String>().expect("a text");
        talk.outbox.push_back(text.clone().into_bytes());
        lock(&talk.record.messages).push(*text);
        Ok(Action::WritePending)
    }

    fn errand(&mut self, errand: Payload) {
        self.errands
            .push(*errand.downcast::<String>().expect("a text"));
    }

    fn panicked(&mut self, _: Option<&Arc<Descriptor>>, message: &str) {
        self.panics.push(message.to_owned());
    }

    fn idle<T: Send>(&mut self, wait: impl FnOnce() -> T + Send) -> T {
        self.naps += 1;
        wait()
    }
}

/// An engine on the test's own thread, with its handler and its door.
pub(crate) struct World<D: Demultiplexer> {
    pub(crate) engine: Engine<Echo, D>,
    pub(crate) echo: Echo,
    pub(crate) door: Door<(Script, Arc<Record>)>,
    pub(crate) turns: usize,
    linger: Option<Duration>,
}

impl World<NoDemultiplexer> {
    /// Connections stay with their worker for ever.
    pub(crate) fn without_demultiplexer() -> Self {
        Self::new(64, None, NoDemultiplexer)
    }
}

impl World<Watcher> {
    pub(crate) fn parking_after(linger: Duration) -> Self {
        Self::new(64, Some(linger), Watcher::start())
    }
}

impl<D: Demultiplexer> World<D> {
    pub(crate) fn new(max_connections: usize, linger: Option<Duration>, demultiplexer: D) -> Self {
        let settings = Settings {
            max_connections,
            linger,
        };
        let (engine, door) = Engine::new(settings, demultiplexer).expect("an engine");
        Self {
            engine,
            echo: Echo::default(),
            door,
            turns: 0,
            linger,
        }
    }

    /// Whether nothing is ever parked or given back.
    pub(crate) fn is_endless(&self) -> bool {
        self.linger.is_none()
    }

    /// Hands a descriptor in; the engine's is then the only one.
    pub(crate) fn serve(&self, fd: impl AsFd, script: Script) -> Arc<Record> {
        self.try_serve(&fd, script).expect("there is a place")
    }

    pub(crate) fn try_serve(
        &self,
        fd: &impl AsFd,
        script: Script,
    ) -> Result<Arc<Record>, SendError> {
        let descriptor = Descriptor::adopt(fd.as_fd()).expect("it can be served");
        let record = Arc::new(Record::default());
        self.door
            .hand_in(descriptor, (script, Arc::clone(&record)))
            .map_err(|(error, _)| error)?;
        Ok(record)
    }

    /// Hands in a descriptor of a service.
    pub(crate) fn serve_for(
        &self,
        service: &Arc<Service>,
        fd: impl AsFd,
        script: Script,
    ) -> Arc<Record> {
        let descriptor = Descriptor::adopt(fd.as_fd()).expect("it can be served");
        let record = Arc::new(Record::default());
        let admission = service.admit().expect("a place");
        let opening = (script, Arc::clone(&record));
        let admitted = self.door.admit(descriptor, opening, admission);
        assert!(admitted.is_ok(), "the engine takes it");
        record
    }

    pub(crate) fn mailbox(&self) -> Arc<Mailbox> {
        Arc::clone(self.engine.mailbox())
    }

    pub(crate) fn turn(&mut self, limit: Duration) -> Turn {
        self.turns += 1;
        self.engine
            .turn(&mut self.echo, Some(limit))
            .expect("the poller works")
    }

    /// Turns until `fact` holds.
    pub(crate) fn until(&mut self, what: &str, mut fact: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !fact() {
            assert!(Instant::now() < deadline, "never: {what}");
            self.turn(NAP);
        }
    }

    /// Turns until everything that can happen by itself has happened: each of a row of
    /// turns slept through its limit, or did nothing.
    pub(crate) fn until_quiet(&mut self, record: &Record) {
        let deadline = Instant::now() + PATIENCE;
        let mut before = usize::MAX;
        let mut quiet = 0;
        while quiet < 40 {
            assert!(Instant::now() < deadline, "never quiet");
            self.turn(NAP);
            let now = record.calls();
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
    }

    /// Writes `data` and reads as many bytes back.
    pub(crate) fn exchange(&mut self, client: &mut (impl Read + Write), data: &[u8]) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        let (mut sent, mut got) = (0, Vec::new());
        let mut buffer = vec![0; 64 * 1024];
        while got.len() < data.len() {
            assert!(Instant::now() < deadline, "{} bytes back", got.len());
            if sent < data.len() {
                sent += no_block(client.write(&data[sent..])).unwrap_or(0);
            }
            self.turn(if sent < data.len() {
                Duration::ZERO
            } else {
                NAP
            });
            while let Some(length) = no_block(client.read(&mut buffer)) {
                assert_ne!(length, 0, "end of stream after {} bytes", got.len());
                got.extend_from_slice(&buffer[..length]);
            }
        }
        got
    }

    /// Reads until the end of the stream.
    pub(crate) fn read_to_end(&mut self, client: &mut impl Read) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut got = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            assert!(
                Instant::now() < deadline,
                "no end after {} bytes",
                got.len()
            );
            match client.read(&mut buffer) {
                Ok(0) => return Ok(got),
                Ok(length) => got.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.turn(NAP);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Stops the engine and drops it.
    pub(crate) fn stop(mut self) {
        self.mailbox().stop();
        let deadline = Instant::now() + PATIENCE;
        while self.turn(NAP) != Turn::Stopped {
            assert!(Instant::now() < deadline, "never stopped");
        }
    }
}

/// `None` if it would block.
pub(crate) fn no_block<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// A demultiplexer like the one of the BEAM: another thread with its own epoll, that
/// reports each armed descriptor once.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    waker: mio::Waker,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    registry: mio::Registry,
    ended: AtomicBool,
    seats: Mutex<HashMap<usize, Seated>>,
    next: AtomicUsize,
}

struct Seated {
    key: Key,
    descriptor: Arc<Descriptor>,
    mailbox: Arc<Mailbox>,
    armed: Option<Interest>,
}

const END: mio::Token = mio::Token(usize::MAX);

impl Watcher {
    pub(crate) fn start() -> Self {
        let poll = mio::Poll::new().expect("a poller");
        let waker = mio::Waker::new(poll.registry(), END).expect("a waker");
        let shared = Arc::new(Shared {
            registry: poll.registry().try_clone().expect("a registry"),
            ended: AtomicBool::new(false),
            seats: Mutex::default(),
            next: AtomicUsize::new(0),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.watch(poll)
        });
        Self {
            shared,
            waker,
            thread: Some(thread),
        }
    }
}

impl Shared {
    fn watch(&self, mut poll: mio::Poll) {
        let mut events = mio::Events::with_capacity(64);
        while !self.ended.load(Ordering::SeqCst) {
            match poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other.expect("the poller works"),
            }
            for event in &events {
                self.report(event.token().0);
            }
        }
    }

    fn report(&self, seat: usize) {
        let report = {
            let mut seats = lock(&self.seats);
            let Some(seated) = seats.get_mut(&seat) else {
                return;
            };
            let Some(interest) = seated.armed.take() else {
                return;
            };
            let _ = self
                .registry
                .deregister(&mut SourceFd(&seated.descriptor.number()));
            let readiness = match interest {
                Interest::Read => Readiness::READ,
                Interest::Write => Readiness::WRITE,
            };
            (seated.key, readiness, Arc::clone(&seated.mailbox))
        };
        let (key, readiness, mailbox) = report;
        mailbox.ready(key, readiness);
    }
}

impl Demultiplexer for Watcher {
    type Seat = usize;

    fn seat(
        &mut self,
        key: Key,
        descriptor: &Arc<Descriptor>,
        mailbox: &Arc<Mailbox>,
    ) -> io::Result<usize> {
        let seat = self.shared.next.fetch_add(1, Ordering::SeqCst);
        let seated = Seated {
            key,
            descriptor: Arc::clone(descriptor),
            mailbox: Arc::clone(mailbox),
            armed: None,
        };
        lock(&self.shared.seats).insert(seat, seated);
        Ok(seat)
    }

    fn arm(&mut self, seat: &usize, interest: Interest) -> io::Result<()> {
        let mut seats = lock(&self.shared.seats);
        let seated = seats.get_mut(seat).expect("a seat that was made");
        let number = seated.descriptor.number();
        let (token, wanted) = (mio::Token(*seat), mio_interest(interest));
        let registry = &self.shared.registry;
        // A second arming replaces the first.
        match registry.register(&mut SourceFd(&number), token, wanted) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                registry.reregister(&mut SourceFd(&number), token, wanted)?;
            }
            other => other?,
        }
        seated.armed = Some(interest);
        Ok(())
    }

    fn retire(&mut self, seat: usize) {
        let seated = lock(&self.shared.seats).remove(&seat);
        if let Some(seated) = seated
            && seated.armed.is_some()
            && !seated.descriptor.is_gone()
        {
            let number = seated.descriptor.number();
            let _ = self.shared.registry.deregister(&mut SourceFd(&number));
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.waker.wake().expect("the watcher wakes");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the watcher ends well");
        }
    }
}

const fn mio_interest(interest: Interest) -> mio::Interest {
    match interest {
        Interest::Read => mio::Interest::READABLE,
        Interest::Write => mio::Interest::WRITABLE,
    }
}

/// Runs each of these tests without a demultiplexer, with one that gets every connection
/// after every event, and with one that gets those silent for 20 ms. What `guard` gives is
/// held from before a world is made until after it ended.
#[macro_export]
macro_rules! in_every_world {
    ($($name:ident,)*) => { $crate::in_every_world! { guard(None::<()>); $($name,)* } };
    (guard($guard:expr); $($name:ident,)*) => {
        mod without_demultiplexer {
            $(#[test] fn $name() {
                let _guard = $guard;
                super::$name($crate::common::World::without_demultiplexer());
            })*
        }
        mod parking_after_every_event {
            $(#[test] fn $name() {
                let _guard = $guard;
                super::$name($crate::common::World::parking_after(std::time::Duration::ZERO));
            })*
        }
        mod parking_after_20_ms {
            $(#[test] fn $name() {
                let _guard = $guard;
                let linger = std::time::Duration::from_millis(20);
                super::$name($crate::common::World::parking_after(linger));
            })*
        }
    };
}

/// The test's end of a connection.
pub(crate) trait Client: Read + Write + Send {
    /// Ends the stream in one direction.
    fn half_close(&self);
    /// Goes away with a reset, or as near to it as the kind comes.
    fn reset(self: Box<Self>);
}

impl Client for TcpStream {
    fn half_close(&self) {
        self.shutdown(Shutdown::Write).expect("a half-close");
    }

    fn reset(self: Box<Self>) {
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&*self, sockopt::Linger, &linger).expect("no linger");
    }
}

impl Client for UnixStream {
    fn half_close(&self) {
        self.shutdown(Shutdown::Write).expect("a half-close");
    }

    fn reset(self: Box<Self>) {}
}

pub(crate) fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a peer");
    client.set_nonblocking(true).expect("non-blocking");
    client.set_nodelay(true).expect("no delay");
    let (server, _) = listener.accept().expect("a connection");
    (client, server)
}

pub(crate) fn unix() -> (UnixStream, UnixStream) {
    let (client, server) = UnixStream::pair().expect("a pair");
    client.set_nonblocking(true).expect("non-blocking");
    (client, server)
}

/// A connection of every kind of stream.
pub(crate) fn streams() -> Vec<(&'static str, Box<dyn Client>, OwnedFd)> {
    let (tcp_client, tcp_server) = tcp();
    let (unix_client, unix_server) = unix();
    vec![
        ("tcp", Box::new(tcp_client), tcp_server.into()),
        ("unix", Box::new(unix_client), unix_server.into()),
    ]
}

/// Bytes in which every place can be told from its neighbours.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at % 251) as u8 ^ (at >> 13) as u8)
        .collect()
}
