//! Listening sockets that are lent to an engine.

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Record, Script, World, count, lock};
use reactor::{
    Accepted, Acceptor, Address, Demultiplexer, Descriptor, Door, Endpoint, Limits, ListenOptions,
    Offer, Service, Source,
};

in_every_world! {
    clients_are_served_from_a_source,
    a_source_without_places_is_given_back,
    a_source_that_is_closed_is_given_back,
    sources_are_given_back_at_the_end,
    a_flood_of_clients_does_not_delay_a_connection,
}

/// The engine's end of a listener, and what the test sees of it.
struct Listener {
    acceptor: Arc<Acceptor>,
    service: Arc<Service>,
    records: Arc<Mutex<Vec<Arc<Record>>>>,
    returned: Arc<AtomicUsize>,
    /// The source lent last accepts nobody any more.
    revoked: Mutex<Arc<AtomicBool>>,
}

type Opening = (Script, Arc<Record>);

impl Listener {
    fn open(places: u64) -> Self {
        let endpoint = Endpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let acceptor = Acceptor::open(&endpoint, &ListenOptions::default()).expect("a listener");
        Self {
            acceptor: Arc::new(acceptor),
            service: Service::new("test".to_owned(), Limits::default(), places),
            records: Arc::default(),
            returned: Arc::default(),
            revoked: Mutex::default(),
        }
    }

    fn lend<D: Demultiplexer>(&self, world: &World<D>) {
        self.lend_through(&world.door);
    }

    fn lend_through(&self, door: &Door<Opening>) {
        let revoked = Arc::new(AtomicBool::new(false));
        *lock(&self.revoked) = Arc::clone(&revoked);
        door.lend(Box::new(Lent {
            acceptor: Arc::clone(&self.acceptor),
            service: Arc::clone(&self.service),
            records: Arc::clone(&self.records),
            returned: Arc::clone(&self.returned),
            revoked,
        }));
    }

    fn revoke(&self) {
        lock(&self.revoked).store(true, Ordering::SeqCst);
    }

    fn connect(&self) -> TcpStream {
        let Ok(Address::Inet(address)) = self.acceptor.address() else {
            panic!("a TCP listener has an address");
        };
        let client = TcpStream::connect(address).expect("a client");
        client.set_nonblocking(true).expect("non-blocking");
        client
    }
}

struct Lent {
    acceptor: Arc<Acceptor>,
    service: Arc<Service>,
    records: Arc<Mutex<Vec<Arc<Record>>>>,
    returned: Arc<AtomicUsize>,
    revoked: Arc<AtomicBool>,
}

impl Source<Opening> for Lent {
    fn accept(&mut self) -> Offer<Opening> {
        if self.revoked.load(Ordering::SeqCst) {
            return Offer::Over;
        }
        let Some(admission) = self.service.admit() else {
            return Offer::Over;
        };
        match self.acceptor.accept() {
            Accepted::Connection(fd, peer) => {
                let descriptor = Descriptor::accepted(fd, self.acceptor.kind(), peer);
                let record = Arc::new(Record::default());
                lock(&self.records).push(Arc::clone(&record));
                Offer::Connection {
                    descriptor: descriptor.expect("it is open"),
                    opening: (Script::echo(), record),
                    admission,
                }
            }
            Accepted::Empty => Offer::Empty,
            Accepted::Exhausted(_) | Accepted::Failed(_) => Offer::Over,
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.acceptor.as_fd()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.returned.fetch_add(1, Ordering::SeqCst);
    }
}

fn clients_are_served_from_a_source<D: Demultiplexer>(mut world: World<D>) {
    let listener = Listener::open(100);
    for round in 1..=3 {
        listener.lend(&world);
        let mut clients: Vec<TcpStream> = (0..20).map(|_| listener.connect()).collect();
        for client in &mut clients {
            assert_eq!(world.exchange(client, b"hello"), b"hello");
        }
        drop(clients);
        world.until("the end of all", || listener.service.active() == 0);
        // Without a linger it stays for ever.
        if !world.is_endless() {
            world.until("the return", || count(&listener.returned) == round);
        }
    }
    assert_eq!(lock(&listener.records).len(), 60);
    let counters = Arc::clone(world.mailbox().counters());
    assert_eq!((counters.accepted.get(), counters.refused.get()), (60, 0));
}

fn a_source_without_places_is_given_back<D: Demultiplexer>(mut world: World<D>) {
    let listener = Listener::open(2);
    let mut clients: Vec<TcpStream> = (0..3).map(|_| listener.connect()).collect();
    listener.lend(&world);
    world.until("the return", || count(&listener.returned) == 1);
    assert_eq!(listener.service.active(), 2);
    drop(clients.remove(0));
    world.until("a place", || listener.service.active() == 1);
    listener.lend(&world);
    assert_eq!(world.exchange(&mut clients[1], b"at last"), b"at last");
}

fn a_source_that_is_closed_is_given_back<D: Demultiplexer>(mut world: World<D>) {
    let listener = Listener::open(2);
    listener.lend(&world);
    let mut client = listener.connect();
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    listener.acceptor.shut();
    world.until("the return", || count(&listener.returned) == 1);
    assert_eq!(world.exchange(&mut client, b"still"), b"still");
}

fn sources_are_given_back_at_the_end<D: Demultiplexer>(mut world: World<D>) {
    let (one, other) = (Listener::open(2), Listener::open(2));
    one.lend(&world);
    let mut client = one.connect();
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    other.lend(&world);
    let door = world.door.clone();
    world.stop();
    assert_eq!((count(&one.returned), count(&other.returned)), (1, 1));
    one.lend_through(&door);
    assert_eq!(count(&one.returned), 2);
}

fn a_flood_of_clients_does_not_delay_a_connection<D: Demultiplexer>(mut world: World<D>) {
    let listener = Listener::open(1000);
    listener.lend(&world);
    let mut client = listener.connect();
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    listener.lend(&world);
    let crowd: Vec<TcpStream> = (0..500).map(|_| listener.connect()).collect();
    client.write_all(b"?").expect("room");
    let first = Arc::clone(&lock(&listener.records)[0]);
    let turns = world.turns;
    world.until("the second word", || count(&first.readable) == 2);
    assert!(
        world.turns - turns <= 3,
        "after {} turns",
        world.turns - turns
    );
    drop(crowd);
    world.turn(Duration::ZERO);
}

#[test]
fn a_source_is_watched_when_another_one_of_the_same_socket_is_given_back() {
    // Without a linger, which would hide it by giving both back.
    let mut world = World::without_demultiplexer();
    let listener = Listener::open(100);
    listener.lend(&world);
    let mut first = listener.connect();
    assert_eq!(world.exchange(&mut first, b"hello"), b"hello");
    // Somebody takes it back, which the engine sees with the next client, and lends it anew.
    listener.revoke();
    let mut second = listener.connect();
    listener.lend(&world);
    assert_eq!(world.exchange(&mut second, b"hello"), b"hello");
    world.until("the return of the first", || count(&listener.returned) == 1);
    let mut third = listener.connect();
    assert_eq!(world.exchange(&mut third, b"hello"), b"hello");
}
