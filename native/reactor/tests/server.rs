//! The classic reactor: Server, Reactor, EventHandler and ConnectionHandler, from start to end.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, count, lock, pattern};
use reactor::{
    Action, Address, AdoptError, ConnectionHandler, Descriptor, Endpoint, EventHandler, Events,
    Link, Payload, Reactor, Reason, RegisterError, SendError, Server, ServerOptions,
};

const LONG: Duration = Duration::from_secs(3600);

/// What became of the connections of a test.
#[derive(Default)]
struct Seen {
    opened: AtomicUsize,
    heard: Mutex<Vec<u8>>,
    writes: AtomicUsize,
    reasons: Mutex<Vec<Reason>>,
    links: Mutex<Vec<Arc<Link>>>,
}

impl Seen {
    fn ends(&self) -> usize {
        lock(&self.reasons).len()
    }
}

/// Sends back what comes.
struct Echo(Arc<Seen>);

impl EventHandler for Echo {
    fn handle_open(&mut self, connection: &mut ConnectionHandler) -> Action {
        lock(&self.0.links).push(Arc::clone(connection.link()));
        self.0.opened.fetch_add(1, Ordering::SeqCst);
        Action::ReadPending
    }

    fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
        lock(&self.0.heard).extend_from_slice(data);
        connection.write(data);
        Action::ReadPending
    }

    fn handle_close(&mut self, _: &ConnectionHandler, reason: Reason) {
        lock(&self.0.reasons).push(reason);
    }
}

fn localhost() -> Endpoint {
    Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
}

fn open<E: EventHandler + 'static>(
    options: ServerOptions,
    handler: impl Fn() -> E + Send + Sync + 'static,
) -> Arc<Server> {
    Arc::new(Server::open(&localhost(), options, handler).expect("a server"))
}

fn echo(seen: &Arc<Seen>) -> Arc<Server> {
    let seen = Arc::clone(seen);
    open(ServerOptions::default(), move || Echo(Arc::clone(&seen)))
}

fn run(server: &Arc<Server>) -> thread::JoinHandle<()> {
    let server = Arc::clone(server);
    thread::spawn(move || server.run().expect("the poller works"))
}

fn connect(server: &Server) -> TcpStream {
    let Address::Inet(address) = server.address() else {
        panic!("it listens on TCP");
    };
    let client = TcpStream::connect(address).expect("it listens");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client
}

fn exchange(client: &mut (impl Read + Write), data: &[u8]) -> Vec<u8> {
    client.write_all(data).expect("it is open");
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).expect("an answer");
    back
}

fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_server_serves_until_it_is_stopped() {
    let seen = Arc::default();
    let server = echo(&seen);
    let thread = run(&server);
    let mut clients: Vec<_> = (0..20).map(|_| connect(&server)).collect();
    for client in &mut clients {
        assert_eq!(exchange(client, b"hello"), b"hello");
    }
    server.stop(LONG);
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).expect("an end"), 0);
    }
    thread.join().expect("no panic");
    assert_eq!(*lock(&seen.reasons), vec![Reason::Drained; 20]);
    assert_eq!(server.counters().accepted.get(), 20);
    assert_eq!(server.service().active(), 0);
}

#[test]
fn what_a_peer_wrote_before_it_left_is_heard() {
    let seen = Arc::default();
    let server = echo(&seen);
    // Data and end are there before the server looks for the first time.
    let sent = pattern(200_000);
    let mut client = connect(&server);
    let writer = thread::spawn({
        let sent = sent.clone();
        move || {
            client.write_all(&sent).expect("it is open");
            client.shutdown(Shutdown::Write).expect("it is open");
            let mut back = Vec::new();
            client.read_to_end(&mut back).expect("an end");
            back
        }
    });
    let thread = run(&server);
    assert!(writer.join().expect("no panic") == sent);
    until("the end", || seen.ends() == 1);
    assert!(*lock(&seen.heard) == sent);
    server.stop(LONG);
    thread.join().expect("no panic");
}

#[test]
fn a_descriptor_is_registered_once() {
    let reactor = Arc::new(Reactor::open().expect("a reactor"));
    let seen = Arc::<Seen>::default();
    let (mut client, far) = UnixStream::pair().expect("a pair");
    let again = far.try_clone().expect("a duplicate");
    let link = reactor
        .register(far, Echo(Arc::clone(&seen)))
        .expect("it is free");
    let refused = reactor.register(again, Echo(Arc::clone(&seen)));
    let twice = RegisterError::Descriptor(AdoptError::AlreadyServed);
    assert_eq!(refused.err(), Some(twice));
    let thread = thread::spawn({
        let reactor = Arc::clone(&reactor);
        move || reactor.run()
    });
    assert_eq!(exchange(&mut client, b"one"), b"one");
    link.close().expect("it is open");
    assert_eq!(client.read(&mut [0]).expect("an end"), 0);
    reactor.stop();
    thread.join().expect("no panic").expect("the poller works");
    let late = reactor.register(client, Echo(Arc::clone(&seen)));
    assert_eq!(late.err(), Some(RegisterError::Reactor(SendError::Closed)));
    assert_eq!(*lock(&seen.reasons), [Reason::Closed]);
}

/// Ends all others as soon as it hears something.
struct Rival(Arc<Seen>);

impl EventHandler for Rival {
    fn handle_read(&mut self, connection: &mut ConnectionHandler, _: &[u8]) -> Action {
        self.0.writes.fetch_add(1, Ordering::SeqCst);
        for link in lock(&self.0.links).iter() {
            if link != connection.link() {
                link.abort().expect("it is open");
            }
        }
        Action::Close
    }

    fn handle_close(&mut self, _: &ConnectionHandler, reason: Reason) {
        lock(&self.0.reasons).push(reason);
    }
}

#[test]
fn who_is_removed_earlier_in_a_batch_hears_nothing() {
    let reactor = Reactor::open().expect("a reactor");
    let seen = Arc::<Seen>::default();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let (mut client, far) = UnixStream::pair().expect("a pair");
        client.write_all(b"!").expect("room");
        let link = reactor.register(far, Rival(Arc::clone(&seen)));
        lock(&seen.links).push(link.expect("it is free"));
        clients.push(client);
    }
    let between = || match seen.ends() {
        8 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    reactor
        .run_with(&mut Events, between)
        .expect("the poller works");
    assert_eq!(count(&seen.writes), 1);
    let mut reasons = lock(&seen.reasons).clone();
    reasons.sort_by_key(|reason| *reason == Reason::Aborted);
    let mut expected = vec![Reason::Aborted; 8];
    expected[0] = Reason::Closed;
    assert_eq!(reasons, expected);
}

#[test]
fn a_stop_closes_the_listener_first_and_the_rest_at_the_deadline() {
    struct Stubborn(Arc<Seen>);
    impl EventHandler for Stubborn {
        fn handle_read(&mut self, _: &mut ConnectionHandler, _: &[u8]) -> Action {
            Action::Continue
        }
        fn handle_drain(&mut self, _: &mut ConnectionHandler) -> Action {
            self.0.opened.fetch_add(1, Ordering::SeqCst);
            Action::Continue
        }
        fn handle_close(&mut self, _: &ConnectionHandler, reason: Reason) {
            lock(&self.0.reasons).push(reason);
        }
    }
    let seen = Arc::<Seen>::default();
    let server = open(ServerOptions::default(), {
        let seen = Arc::clone(&seen);
        move || Stubborn(Arc::clone(&seen))
    });
    let thread = run(&server);
    let mut client = connect(&server);
    until("the connection", || server.service().active() == 1);
    server.stop(LONG);
    until("the request", || count(&seen.opened) == 1);
    let Address::Inet(address) = server.address() else {
        panic!("it listens on TCP");
    };
    let refused = TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(seen.ends(), 0);
    // Whoever asks again may only shorten the time.
    server.stop(Duration::from_millis(1));
    thread.join().expect("no panic");
    assert_eq!(client.read(&mut [0]).expect("an end"), 0);
    assert_eq!(*lock(&seen.reasons), [Reason::Stopped]);
    assert_eq!(count(&seen.opened), 1);
}

#[test]
fn who_waits_in_the_backlog_at_a_stop_is_served() {
    let seen = Arc::default();
    let server = echo(&seen);
    let mut clients: Vec<_> = (0..100).map(|_| connect(&server)).collect();
    for client in &mut clients {
        client.write_all(b"hello").expect("it is open");
    }
    server.stop(LONG);
    let thread = run(&server);
    for client in &mut clients {
        let mut back = Vec::new();
        client.read_to_end(&mut back).expect("no reset");
        assert_eq!(back, b"hello");
    }
    thread.join().expect("no panic");
}

#[test]
fn a_server_that_was_stopped_runs_again_on_the_same_address() {
    let folder = std::env::temp_dir().join(format!("py_reactor-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("again");
    for endpoint in [localhost(), Endpoint::Unix(path.clone())] {
        let seen = Arc::<Seen>::default();
        let server = Server::open(&endpoint, ServerOptions::default(), {
            let seen = Arc::clone(&seen);
            move || Echo(Arc::clone(&seen))
        });
        let server = Arc::new(server.expect("a server"));
        let address = server.address().clone();
        for _ in 0..50 {
            let thread = run(&server);
            until("a listener", || match &address {
                Address::Inet(address) => TcpStream::connect(address)
                    .is_ok_and(|mut client| exchange(&mut client, b"hello") == b"hello"),
                Address::Unix(path) => UnixStream::connect(path)
                    .is_ok_and(|mut client| exchange(&mut client, b"hello") == b"hello"),
            });
            assert_eq!(
                server.run().map_err(|error| error.kind()),
                Err(ErrorKind::ResourceBusy)
            );
            server.stop(LONG);
            thread.join().expect("no panic");
            // Between two runs there is nothing to stop.
            server.stop(Duration::ZERO);
        }
        assert_eq!(count(&seen.opened), seen.ends());
        assert!(!path.exists());
    }
    std::fs::remove_dir_all(folder).expect("it is ours");
}

#[test]
fn servers_that_share_a_socket_end_one_by_one() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
    let inherit = |seen: &Arc<Seen>| {
        let socket = listener.try_clone().expect("a duplicate").into();
        let seen = Arc::clone(seen);
        let server = Server::inherit(socket, ServerOptions::default(), move || {
            Box::new(Echo(Arc::clone(&seen))) as Box<dyn EventHandler>
        });
        Arc::new(server.expect("a server"))
    };
    let (first, second) = (Arc::<Seen>::default(), Arc::<Seen>::default());
    let (one, other) = (inherit(&first), inherit(&second));
    let mut thread = run(&one);
    assert_eq!(exchange(&mut connect(&one), b"hello"), b"hello");
    for _ in 0..10 {
        one.stop(Duration::ZERO);
        thread.join().expect("no panic");
        // It waits in the backlog for whoever accepts next.
        let mut client = connect(&one);
        let taken_over = run(&other);
        assert_eq!(exchange(&mut client, b"hello"), b"hello");
        other.stop(Duration::ZERO);
        taken_over.join().expect("no panic");
        thread = run(&one);
        assert_eq!(exchange(&mut connect(&other), b"hello"), b"hello");
    }
    one.stop(Duration::ZERO);
    thread.join().expect("no panic");
    assert_eq!((count(&first.opened), count(&second.opened)), (11, 10));
}

#[test]
fn only_a_socket_that_listens_is_inherited() {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("a socket");
    let inherited =
        Server::<Box<dyn EventHandler>>::inherit(socket.into(), ServerOptions::default(), || {
            unreachable!("there are no clients")
        });
    let error = inherited.expect_err("it has no connections");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn no_more_connections_than_there_are_places() {
    let seen = Arc::<Seen>::default();
    let options = ServerOptions {
        max_connections: 2,
        ..ServerOptions::default()
    };
    let server = open(options, {
        let seen = Arc::clone(&seen);
        move || Echo(Arc::clone(&seen))
    });
    let thread = run(&server);
    let mut clients: Vec<_> = (0..20).map(|_| connect(&server)).collect();
    while !clients.is_empty() {
        let mut client = clients.remove(0);
        assert_eq!(exchange(&mut client, b"hello"), b"hello");
        assert!(server.service().active() <= 2);
    }
    assert_eq!(count(&seen.opened), 20);
    server.stop(LONG);
    thread.join().expect("no panic");
}

#[test]
fn what_the_kernel_does_not_take_waits_for_it() {
    let seen = Arc::<Seen>::default();
    let server = echo(&seen);
    let thread = run(&server);
    let mut client = connect(&server);
    let sent = pattern(8 * 1024 * 1024);
    let mut writer = client.try_clone().expect("a duplicate");
    let data = sent.clone();
    let writing = thread::spawn(move || writer.write_all(&data).expect("it is open"));
    // Nothing is read before the server holds as much as it may.
    let high_water = server.service().limits().high_water as u64;
    until("the high-water mark", || {
        server.counters().bytes_in.get() > high_water
    });
    let mut back = vec![0; sent.len()];
    client.read_exact(&mut back).expect("an answer");
    assert!(back == sent);
    writing.join().expect("no panic");
    server.stop(LONG);
    thread.join().expect("no panic");
}

/// Sends a number of pieces as the peer takes them.
struct Source {
    pieces: usize,
    seen: Arc<Seen>,
}

impl EventHandler for Source {
    fn handle_read(&mut self, _: &mut ConnectionHandler, _: &[u8]) -> Action {
        Action::WritePending
    }

    fn handle_write(&mut self, connection: &mut ConnectionHandler) -> Action {
        assert_eq!(connection.backlog(), 0);
        self.seen.writes.fetch_add(1, Ordering::SeqCst);
        if self.pieces == 0 {
            return Action::Close;
        }
        self.pieces -= 1;
        connection.write(&[7; 64 * 1024]);
        Action::WritePending
    }
}

#[test]
fn a_handler_is_asked_for_more_when_all_is_sent() {
    let seen = Arc::<Seen>::default();
    let server = open(ServerOptions::default(), {
        let seen = Arc::clone(&seen);
        move || Source {
            pieces: 100,
            seen: Arc::clone(&seen),
        }
    });
    let thread = run(&server);
    let mut client = connect(&server);
    client.write_all(b"go").expect("it is open");
    let mut got = Vec::new();
    client.read_to_end(&mut got).expect("an end");
    assert_eq!(got.len(), 100 * 64 * 1024);
    assert_eq!(count(&seen.writes), 101);
    server.stop(LONG);
    thread.join().expect("no panic");
}

/// Waits in its callback until it may go on; counts the messages that come.
struct Slow {
    entered: Sender<Arc<Link>>,
    go_on: Receiver<()>,
    results: Sender<usize>,
}

impl EventHandler for Slow {
    fn handle_read(&mut self, connection: &mut ConnectionHandler, _: &[u8]) -> Action {
        let link = Arc::clone(connection.link());
        self.entered.send(link).expect("the test waits");
        self.go_on.recv().expect("the test goes on");
        Action::Continue
    }

    fn handle_message(&mut self, _: &mut ConnectionHandler, message: Payload) -> Action {
        let result = message.downcast::<usize>().expect("a number");
        self.results.send(*result).expect("the test waits");
        Action::Continue
    }
}

#[test]
fn work_of_other_threads_comes_back_through_a_bounded_queue() {
    let reactor = Arc::new(Reactor::open().expect("a reactor"));
    let (entered, is_in) = mpsc::channel();
    let (go, go_on) = mpsc::channel();
    let (results, come_back) = mpsc::channel();
    let (mut client, far) = UnixStream::pair().expect("a pair");
    let slow = Slow {
        entered,
        go_on,
        results,
    };
    reactor.register(far, slow).expect("it is free");
    let thread = thread::spawn({
        let reactor = Arc::clone(&reactor);
        move || reactor.run()
    });
    client.write_all(b"!").expect("room");
    let link = is_in.recv_timeout(PATIENCE).expect("a callback");
    // The worker is busy: what is done meanwhile waits, and there is an end to that.
    let taken = (0..1_000_000)
        .find(|number| link.send(Box::new(*number)) == Err(SendError::Full))
        .expect("a bound");
    assert!((1000..=10_000).contains(&taken), "{taken}");
    go.send(()).expect("it waits");
    for expected in 0..taken {
        assert_eq!(come_back.recv_timeout(PATIENCE), Ok(expected));
    }
    // There is room again.
    until("room", || link.send(Box::new(taken)).is_ok());
    assert_eq!(come_back.recv_timeout(PATIENCE), Ok(taken));
    reactor.stop();
    thread.join().expect("no panic").expect("the poller works");
    assert_eq!(link.send(Box::new(0usize)), Err(SendError::Closed));
}

#[test]
fn a_descriptor_of_ones_own_wakes_the_reactor() {
    let reactor = Arc::new(Reactor::<Box<dyn EventHandler>>::open().expect("a reactor"));
    let (mut near, far) = UnixStream::pair().expect("a pair");
    reactor.wake_on(far.into()).expect("a socket");
    for _ in 0..3 {
        let (rung, wakes) = mpsc::channel();
        let thread = thread::spawn({
            let reactor = Arc::clone(&reactor);
            move || {
                let between = || {
                    let _ = rung.send(());
                    ControlFlow::Continue(())
                };
                reactor.run_with(&mut Events, between)
            }
        });
        for _ in 0..3 {
            // Whatever the first turns were for: then it sleeps.
            while wakes.recv_timeout(Duration::from_millis(100)).is_ok() {}
            near.write_all(b"ring").expect("room");
            wakes.recv_timeout(PATIENCE).expect("a turn");
        }
        reactor.stop();
        thread.join().expect("no panic").expect("the poller works");
    }
}

#[test]
fn datagrams_are_answered_to_their_sender() {
    let reactor = Arc::new(Reactor::open().expect("a reactor"));
    let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("an address");
    let seen = Arc::<Seen>::default();
    reactor
        .register(server, Echo(Arc::clone(&seen)))
        .expect("it is free");
    let thread = thread::spawn({
        let reactor = Arc::clone(&reactor);
        move || reactor.run()
    });
    for text in [&b"one"[..], b"two"] {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.send_to(text, address).expect("room");
        let mut back = [0; 16];
        let (length, from) = client.recv_from(&mut back).expect("an answer");
        assert_eq!((&back[..length], from), (text, address));
    }
    reactor.stop();
    thread.join().expect("no panic").expect("the poller works");
    assert_eq!(*lock(&seen.reasons), [Reason::Stopped]);
}

#[test]
fn a_panic_costs_one_connection_and_is_counted() {
    struct Broken;
    impl EventHandler for Broken {
        fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
            assert_ne!(data, b"panic");
            connection.write(data);
            Action::ReadPending
        }
    }
    let server = open(ServerOptions::default(), || Broken);
    let thread = run(&server);
    let (mut victim, mut other) = (connect(&server), connect(&server));
    victim.write_all(b"panic").expect("it is open");
    assert_eq!(victim.read(&mut [0]).expect("an end"), 0);
    assert_eq!(exchange(&mut other, b"hello"), b"hello");
    assert_eq!(server.counters().exceptions.get(), 1);
    server.stop(LONG);
    thread.join().expect("no panic");
}

#[test]
fn a_timeout_is_told_once() {
    struct Greets;
    impl EventHandler for Greets {
        fn handle_open(&mut self, connection: &mut ConnectionHandler) -> Action {
            connection.set_timeout(Some(Duration::from_millis(10)));
            Action::ReadPending
        }
        fn handle_read(&mut self, _: &mut ConnectionHandler, _: &[u8]) -> Action {
            Action::Continue
        }
        fn handle_timeout(&mut self, connection: &mut ConnectionHandler) -> Action {
            connection.write(b"late");
            Action::Close
        }
    }
    let server = open(ServerOptions::default(), || Greets);
    let thread = run(&server);
    let mut got = Vec::new();
    connect(&server).read_to_end(&mut got).expect("an end");
    assert_eq!(got, b"late");
    server.stop(LONG);
    thread.join().expect("no panic");
}

#[test]
fn a_stop_closes_the_listener_though_a_handler_holds_the_run_up() {
    let (entered, is_in) = mpsc::channel();
    let (go, go_on) = mpsc::channel::<()>();
    let (results, _come_back) = mpsc::channel();
    let slow = Mutex::new(Some(Slow {
        entered,
        go_on,
        results,
    }));
    let seen = Arc::<Seen>::default();
    let others = Arc::clone(&seen);
    let server = Server::new(&localhost(), ServerOptions::default(), move || {
        let first: Box<dyn EventHandler> = match lock(&slow).take() {
            Some(slow) => Box::new(slow),
            None => Box::new(Echo(Arc::clone(&others))),
        };
        first
    });
    let server: Arc<Server> = Arc::new(server.expect("a server"));
    let thread = run(&server);
    let mut held = connect(&server);
    held.write_all(b"!").expect("it is open");
    let _link = is_in.recv_timeout(PATIENCE).expect("a callback");
    let mut waiting = connect(&server);
    waiting.write_all(b"hello").expect("it is open");
    server.stop(LONG);
    let Address::Inet(address) = server.address() else {
        panic!("it listens on TCP");
    };
    let refused = TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    go.send(()).expect("it waits");
    // Who had connected before is served to its end.
    let mut back = Vec::new();
    waiting.read_to_end(&mut back).expect("no reset");
    assert_eq!(back, b"hello");
    drop(held);
    thread.join().expect("no panic");
}

#[test]
fn what_a_server_accepted_is_not_registered_again() {
    let seen = Arc::default();
    let server = echo(&seen);
    let thread = run(&server);
    let mut client = connect(&server);
    assert_eq!(exchange(&mut client, b"hello"), b"hello");
    let link = Arc::clone(&lock(&seen.links)[0]);
    let own = link.descriptor().expect("it is open");
    let number = own.fd().expect("it is the kernel's");
    let duplicate = number.try_clone_to_owned().expect("a duplicate");
    for refused in [number, duplicate.as_fd()] {
        let refused = Descriptor::adopt(refused).err();
        assert_eq!(refused, Some(AdoptError::AlreadyServed));
    }
    drop(own);
    assert_eq!(exchange(&mut client, b"alone"), b"alone");
    drop(duplicate);
    server.stop(LONG);
    assert_eq!(client.read(&mut [0]).expect("an end"), 0);
    thread.join().expect("no panic");
}

#[test]
fn a_drained_server_ends_though_somebody_held_the_last_descriptor() {
    let seen = Arc::<Seen>::default();
    let server = echo(&seen);
    let thread = run(&server);
    let mut client = connect(&server);
    assert_eq!(exchange(&mut client, b"x"), b"x");
    // As each use of a link does for a moment.
    let held = lock(&seen.links)[0].descriptor().expect("it is open");
    server.stop(LONG);
    drop(client);
    until("the end", || seen.ends() == 1);
    // Long enough for the engine to sleep again.
    thread::sleep(Duration::from_millis(100));
    drop(held);
    until("the end of the run", || thread.is_finished());
    thread.join().expect("no panic");
}

#[test]
fn what_was_written_before_a_pause_is_sent_after_it() {
    struct Pauses(Arc<Seen>);
    impl EventHandler for Pauses {
        fn handle_read(&mut self, connection: &mut ConnectionHandler, data: &[u8]) -> Action {
            lock(&self.0.links).push(Arc::clone(connection.link()));
            connection.write(data);
            Action::Pause
        }
    }
    let seen = Arc::<Seen>::default();
    let server = open(ServerOptions::default(), {
        let seen = Arc::clone(&seen);
        move || Pauses(Arc::clone(&seen))
    });
    let thread = run(&server);
    let mut client = connect(&server);
    for _ in 0..3 {
        client.write_all(b"later").expect("it is open");
        until("the pause", || !lock(&seen.links).is_empty());
        let link = lock(&seen.links).remove(0);
        link.resume(Action::ReadPending).expect("it is open");
        let mut back = [0; 5];
        client.read_exact(&mut back).expect("an answer");
        assert_eq!(&back, b"later");
    }
    server.stop(LONG);
    assert_eq!(client.read(&mut [0]).expect("an end"), 0);
    thread.join().expect("no panic");
}
