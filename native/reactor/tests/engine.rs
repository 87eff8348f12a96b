//! The engine as a whole: panics, limits, fairness, sleep, and its end.

mod common;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{
    PATIENCE, Record, Script, Talk, Watcher, World, count, lock, no_block, owner, pattern, streams,
    unix,
};
use reactor::{
    Action, Demultiplexer, Descriptor, Interest, Key, Mailbox, NoDemultiplexer, Readiness, Reason,
    SendError, Turn,
};

in_every_world! {
    a_panic_in_a_callback_costs_one_connection,
    a_stop_loses_every_connection_once,
    a_stop_with_unread_data_keeps_the_last_word,
    a_flood_does_not_delay_its_neighbour,
    signals_that_a_callback_sends_to_itself_wait_for_the_next_turn,
    a_place_is_given_back,
    nobody_moves_while_nothing_happens,
    who_is_ended_earlier_in_the_same_batch_is_skipped,
}

fn who_is_ended_earlier_in_the_same_batch_is_skipped<D: Demultiplexer>(mut world: World<D>) {
    type End = fn(&Descriptor);
    let ends: [End; 4] = [
        |other| other.link().close().expect("it is open"),
        |other| other.link().abort().expect("it is open"),
        |other| owner(other).resume(Action::Close).expect("it is open"),
        |other| owner(other).resume(Action::Abort).expect("it is open"),
    ];
    for end in ends {
        let both: Arc<Mutex<Vec<Arc<Descriptor>>>> = Arc::default();
        let serve = |world: &World<D>| {
            let others = Arc::clone(&both);
            let (client, server) = unix();
            let script = Script::echo().on_data(move |talk, own| {
                for other in lock(&others)
                    .iter()
                    .filter(|other| !Arc::ptr_eq(other, own))
                {
                    end(other);
                }
                talk.echo()
            });
            (client, world.serve(server, script))
        };
        let mut pair = [serve(&world), serve(&world)];
        world.until("both", || {
            pair.iter().all(|(_, at)| count(&at.connected) == 1)
        });
        *lock(&both) = pair.iter().map(|(_, record)| record.descriptor()).collect();
        // Both are ready before the engine looks at either.
        for (client, _) in &mut pair {
            client.write_all(b"!").expect("room");
        }
        world.until("an end", || pair.iter().any(|(_, record)| record.is_lost()));
        let heard: usize = pair.iter().map(|(_, record)| count(&record.readable)).sum();
        assert_eq!(heard, 1, "whoever came first ended the other one");
        lock(&both).clear();
        drop(pair);
        let mailbox = world.mailbox();
        world.until("no connection", || mailbox.counters().active.get() == 0);
    }
}

fn a_panic_in_a_callback_costs_one_connection<D: Demultiplexer>(mut world: World<D>) {
    type Break = fn(Script) -> Script;
    let breaks: [(&str, Break); 6] = [
        ("connected", |script| {
            script.on_connected(|_, _| panic!("connected"))
        }),
        ("data", |script| script.on_data(|_, _| panic!("data"))),
        ("eof", |script| script.on_eof(|_, _| panic!("eof"))),
        ("room", |script| script.on_room(|_, _| panic!("room"))),
        ("flush", |script| script.on_flush(|_, _| panic!("flush"))),
        ("lost", |script| script.on_lost(|_, _| panic!("lost"))),
    ];
    let (mut bystander, server) = unix();
    let untouched = world.serve(server, Script::echo());
    for (name, panics) in breaks {
        let (mut client, server) = unix();
        let record = world.serve(server, panics(Script::echo()));
        client.write_all(b"?").expect("room");
        // The connection whose `connected` panics is closed with this unread.
        let _ = world.read_to_end_after_half_close(&mut client, name != "data");
        let made = usize::from(name != "connected");
        world.until("the loss", || count(&record.lost) == made);
        assert_eq!(world.echo.panics.pop().as_deref(), Some(name));
        if !matches!(name, "connected" | "lost") {
            assert_eq!(record.reason(), Reason::Exception, "{name}");
        }
        assert_eq!(world.exchange(&mut bystander, b"well?"), b"well?", "{name}");
        let mailbox = world.mailbox();
        assert_eq!(mailbox.counters().active.get(), 1, "{name}");
    }
    assert_eq!(count(&untouched.lost), 0);
}

impl<D: Demultiplexer> World<D> {
    fn read_to_end_after_half_close(
        &mut self,
        client: &mut UnixStream,
        half_close: bool,
    ) -> io::Result<Vec<u8>> {
        if half_close {
            client.shutdown(std::net::Shutdown::Write)?;
        }
        self.read_to_end(client)
    }
}

fn a_stop_loses_every_connection_once<D: Demultiplexer>(mut world: World<D>) {
    let mut clients = Vec::new();
    let actions = [Action::ReadPending, Action::Pause, Action::WritePending];
    for action in actions {
        for (_, client, server) in streams() {
            let record = world.serve(
                server,
                Script::echo().on_connected(move |talk, _| {
                    if action == Action::WritePending {
                        talk.outbox.push_back(pattern(20_000_000));
                    }
                    Ok(action)
                }),
            );
            world.until("the connection", || count(&record.connected) == 1);
            world.until_quiet(&record);
            clients.push((client, record));
        }
    }
    // One with a last word in its buffer.
    let (mut client, server) = unix();
    let record = world.serve(
        server,
        Script::echo().on_connected(|talk, _| {
            talk.outbox.push_back(b"bye".to_vec());
            Ok(Action::Pause)
        }),
    );
    world.until("the connection", || count(&record.connected) == 1);
    let (door, mailbox) = (world.door.clone(), world.mailbox());
    world.stop();
    let mut last = Vec::new();
    client.read_to_end(&mut last).expect("an orderly end");
    assert_eq!(last, b"bye");
    for (_, record) in &clients {
        assert_eq!(count(&record.lost), 1);
        assert_eq!(record.reason(), Reason::Stopped);
    }
    assert_eq!(mailbox.counters().active.get(), 0);
    assert_eq!(mailbox.counters().parked.get(), 0);
    let (_client, server) = unix();
    let descriptor = Descriptor::adopt(std::os::fd::AsFd::as_fd(&server)).expect("a stream");
    let refused = door.hand_in(descriptor, (Script::echo(), Arc::default()));
    assert!(matches!(refused, Err((SendError::Closed, _))));
}

fn a_stop_with_unread_data_keeps_the_last_word<D: Demultiplexer>(mut world: World<D>) {
    let mut clients = Vec::new();
    for (kind, mut client, server) in streams() {
        client.write_all(&pattern(100_000)).expect("room");
        let record = world.serve(
            server,
            Script::echo().on_data(|talk, _| {
                talk.outbox.push_back(b"bye".to_vec());
                Ok(Action::Pause)
            }),
        );
        world.until("the data", || count(&record.readable) == 1);
        world.until_quiet(&record);
        clients.push((kind, client));
    }
    world.stop();
    for (kind, mut client) in clients {
        let deadline = Instant::now() + PATIENCE;
        let mut last = Vec::new();
        let mut buffer = [0; 10];
        loop {
            assert!(Instant::now() < deadline, "{kind} never ends");
            match no_block(client.read(&mut buffer)) {
                Some(0) => break,
                Some(length) => last.extend_from_slice(&buffer[..length]),
                None => std::thread::yield_now(),
            }
        }
        assert_eq!(last, b"bye", "{kind}");
    }
}

fn a_flood_does_not_delay_its_neighbour<D: Demultiplexer>(mut world: World<D>) {
    let (mut flooding, flooded) = common::tcp();
    let (mut client, server) = unix();
    let neighbour = world.serve(server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    let mut sent = 0;
    while let Some(length) = no_block(flooding.write(&pattern(1 << 20))) {
        sent += length;
    }
    let between = Arc::new(AtomicUsize::new(0));
    let flood = world.serve(
        flooded,
        Script::echo().on_data({
            let (neighbour, between) = (Arc::clone(&neighbour), Arc::clone(&between));
            move |talk, _| {
                match count(&talk.record.readable) {
                    // While this one has much to read, the neighbour is spoken to.
                    1 => client.write_all(b"still there?").expect("room"),
                    _ if count(&neighbour.readable) == 1 => {
                        between.fetch_add(1, Ordering::SeqCst);
                    }
                    _ => {}
                }
                Ok(Action::ReadPending)
            }
        }),
    );
    world.until("all of the flood", || count(&flood.bytes) == sent);
    world.until("the neighbour", || count(&neighbour.readable) == 2);
    assert!(count(&flood.readable) > 10, "that was no flood");
    // Its watcher is another thread, which has to run first.
    if world.mailbox().counters().wakes.get() == 0 {
        assert!(count(&between) <= 2, "{} reads between", count(&between));
    }
}

fn signals_that_a_callback_sends_to_itself_wait_for_the_next_turn<D: Demultiplexer>(
    mut world: World<D>,
) {
    let (_client, server) = unix();
    let record = world.serve(
        server,
        Script::echo().on_room(|talk, descriptor| {
            if count(&talk.record.writable) < 10_000 {
                let owner = descriptor.owner().expect("an engine has it");
                owner.resume(Action::WritePending).expect("room");
            }
            Ok(Action::ReadPending)
        }),
    );
    world.until("the connection", || count(&record.connected) == 1);
    record.resume(Action::WritePending);
    world.turn(Duration::ZERO);
    let first = count(&record.writable);
    assert!((1..10).contains(&first), "{first} in one turn");
    world.until("all of them", || count(&record.writable) == 10_000);
}

fn a_place_is_given_back<D: Demultiplexer>(mut world: World<D>) {
    let mut clients = Vec::new();
    while world.mailbox().counters().active.get() < 64 {
        let (client, server) = unix();
        let record = world.serve(server, Script::echo());
        clients.push((client, record));
    }
    let (mut client, server) = unix();
    let refused = world.try_serve(&server, Script::echo());
    assert!(matches!(refused, Err(SendError::Full)));
    drop(server);
    assert_eq!(world.read_to_end(&mut client).expect("closed"), b"");
    assert_eq!(world.mailbox().counters().refused.get(), 1);
    let (gone, record) = clients.pop().expect("one of them");
    drop(gone);
    world.until("the loss", || record.is_lost());
    let (mut client, server) = unix();
    world.serve(server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"here"), b"here");
}

fn nobody_moves_while_nothing_happens<D: Demultiplexer>(mut world: World<D>) {
    let mut clients = Vec::new();
    for action in [Action::ReadPending, Action::Pause, Action::WritePending] {
        for (_, client, server) in streams() {
            let record = world.serve(
                server,
                Script::echo().on_connected(move |talk, _| {
                    if action == Action::WritePending {
                        talk.outbox.push_back(pattern(20_000_000));
                    }
                    Ok(action)
                }),
            );
            clients.push((client, record));
        }
    }
    for (_, record) in &clients {
        world.until_quiet(record);
    }
    let calls: usize = clients.iter().map(|(_, record)| record.calls()).sum();
    // Time is the subject: nothing may end this sleep early.
    let (limit, began) = (Duration::from_millis(300), Instant::now());
    world.turn(limit);
    assert!(
        began.elapsed() >= limit,
        "awake after {:?}",
        began.elapsed()
    );
    let after: usize = clients.iter().map(|(_, record)| record.calls()).sum();
    assert_eq!(calls, after);
}

/// What a demultiplexer was asked, told to a test that reports in its place.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(Key, Interest)>>>);

impl Demultiplexer for Told {
    type Seat = Key;

    fn seat(&mut self, key: Key, _: &Arc<Descriptor>, _: &Arc<Mailbox>) -> io::Result<Key> {
        Ok(key)
    }

    fn arm(&mut self, seat: &Key, interest: Interest) -> io::Result<()> {
        lock(&self.0).push((*seat, interest));
        Ok(())
    }

    fn retire(&mut self, _: Key) {}
}

impl Told {
    /// The key of the connection that was parked last.
    fn last(&self) -> Key {
        lock(&self.0).last().expect("somebody was parked").0
    }

    fn armings(&self) -> usize {
        lock(&self.0).len()
    }
}

fn told(max_connections: usize) -> (World<Told>, Told) {
    let told = Told::default();
    let world = World::new(max_connections, Some(Duration::ZERO), told.clone());
    (world, told)
}

/// Fills the inbox with what concerns nobody any more.
fn overflow(mailbox: &Mailbox, stale: Key) {
    for _ in 0..10_000 {
        mailbox.ready(stale, Readiness::READ);
    }
}

/// A key whose connection is over.
fn stale_key(world: &mut World<Told>, told: &Told) -> Key {
    let (client, server) = unix();
    let record = world.serve(server, Script::echo());
    world.until("the parking", || told.armings() == 1);
    drop(client);
    world.mailbox().ready(told.last(), Readiness::READ);
    world.until("the loss", || record.is_lost());
    told.last()
}

#[test]
fn a_report_that_finds_the_inbox_full_still_arrives() {
    let (mut world, told) = told(1);
    let stale = stale_key(&mut world, &told);
    let (mut client, server) = unix();
    let record = world.serve(server, Script::echo());
    world.until("the parking", || told.armings() == 2);
    assert_ne!(told.last(), stale);
    client.write_all(b"hello").expect("room");
    world.until_quiet(&record);
    assert_eq!(record.calls(), 0, "nobody has reported it");
    overflow(&world.mailbox(), stale);
    world.mailbox().ready(told.last(), Readiness::READ);
    let owner = record.descriptor();
    let owner = owner.owner().expect("an engine has it");
    assert_eq!(owner.resume(Action::ReadPending), Err(SendError::Full));
    world.until("the data", || count(&record.bytes) == 5);
    let mailbox = world.mailbox();
    world.until("the parking", || mailbox.counters().parked.get() == 1);
}

#[test]
fn a_look_at_everybody_harms_nobody() {
    let (mut world, told) = told(2);
    let stale = stale_key(&mut world, &told);
    let (read, write) = nix::unistd::pipe().expect("a pipe");
    let writing = world.serve(write, Script::echo());
    let (mut client, server) = unix();
    let paused = world.serve(
        server,
        Script::echo().on_connected(|_, _| Ok(Action::Pause)),
    );
    client.write_all(b"hello").expect("room");
    world.until("the connection", || count(&paused.connected) == 1);
    overflow(&world.mailbox(), stale);
    world.until_quiet(&paused);
    assert_eq!(paused.calls(), 0);
    assert!(!writing.is_lost() && !paused.is_lost());
    drop(read);
    world.mailbox().ready(told.last(), Readiness::READ);
    world.until("the loss", || writing.is_lost());
}

#[test]
fn a_connection_in_a_slot_that_was_used_is_parked_once() {
    let (mut world, told) = told(2);
    let (_client, server) = unix();
    let first = world.serve(server, Script::echo());
    world.until("the parking", || told.armings() == 1);
    // All in one turn: it has something to do, it ends, its successor comes.
    world.mailbox().ready(told.last(), Readiness::READ);
    first.resume(Action::Abort);
    let (_client, server) = unix();
    let second = world.serve(server, Script::echo());
    world.until("the parking", || told.armings() == 2);
    world.until_quiet(&second);
    assert!(first.is_lost());
    assert_eq!(told.armings(), 2);
    assert_eq!(world.mailbox().counters().parked.get(), 1);
}

#[test]
fn a_report_for_a_predecessor_is_ignored() {
    let (mut world, told) = told(1);
    let stale = stale_key(&mut world, &told);
    let (mut client, server) = unix();
    let record = world.serve(server, Script::echo());
    world.until("the parking", || told.armings() == 2);
    client.write_all(b"hello").expect("room");
    world.mailbox().ready(stale, Readiness::ANY);
    world.until_quiet(&record);
    assert_eq!(record.calls(), 0);
    world.mailbox().ready(told.last(), Readiness::READ);
    world.until("the data", || count(&record.bytes) == 5);
}

#[test]
fn a_report_without_cause_does_no_harm() {
    for readiness in [Readiness::READ, Readiness::WRITE, Readiness::ANY] {
        let (mut world, told) = told(1);
        let (mut client, server) = unix();
        let record = world.serve(server, Script::echo());
        for armings in 1..10 {
            world.until("the parking", || told.armings() == armings);
            world.mailbox().ready(told.last(), readiness);
        }
        world.until("the parking", || told.armings() == 10);
        assert_eq!(record.calls(), 0);
        client.write_all(b"hello").expect("room");
        world.mailbox().ready(told.last(), Readiness::READ);
        world.until("the data", || count(&record.bytes) == 5);
    }
}

/// Takes every seat and then cannot watch.
struct Broken;

impl Demultiplexer for Broken {
    type Seat = ();

    fn seat(&mut self, _: Key, _: &Arc<Descriptor>, _: &Arc<Mailbox>) -> io::Result<()> {
        Ok(())
    }

    fn arm(&mut self, (): &(), _: Interest) -> io::Result<()> {
        Err(io::ErrorKind::Other.into())
    }

    fn retire(&mut self, (): ()) {}
}

#[test]
fn a_connection_that_cannot_be_parked_stays() {
    fn stays<D: Demultiplexer>(mut world: World<D>) {
        let (mut client, server) = unix();
        let record = world.serve(server, Script::echo());
        for size in [1, 100_000] {
            assert!(world.exchange(&mut client, &pattern(size)) == pattern(size));
            world.until_quiet(&record);
        }
        assert_eq!(world.mailbox().counters().parked.get(), 0);
    }
    for linger in [Duration::ZERO, Duration::from_millis(1)] {
        stays(World::new(8, Some(linger), Broken));
        stays(World::new(8, Some(linger), NoDemultiplexer));
    }
}

#[test]
fn a_silent_connection_is_parked_after_the_linger() {
    let mut world = World::parking_after(Duration::from_millis(20));
    let (mut client, server) = unix();
    world.serve(server, Script::echo());
    for _ in 0..3 {
        assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
        let mailbox = world.mailbox();
        world.until("the parking", || mailbox.counters().parked.get() == 1);
    }
    assert_eq!(world.mailbox().counters().parkings.get(), 3);
}

#[test]
fn limits_may_be_as_large_as_they_like() {
    let mut world = World::new(usize::MAX, Some(Duration::MAX), Watcher::start());
    let (mut client, server) = unix();
    let record = world.serve(server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    world.until_quiet(&record);
    assert_eq!(world.mailbox().counters().parked.get(), 0);
}

#[test]
fn what_is_on_its_way_when_the_worker_ends_is_closed() {
    let world = World::without_demultiplexer();
    let (mut client, server) = unix();
    let record = world.serve(server, Script::echo());
    let (door, mailbox) = (world.door.clone(), world.mailbox());
    world.stop();
    assert_eq!(no_block(client.read(&mut [0])), Some(0));
    assert_eq!(count(&record.connected), 0);
    assert_eq!(mailbox.counters().active.get(), 0);
    drop(door);
}

#[test]
fn a_sleeping_worker_hears_every_signal_and_the_stop() {
    let mut world = World::parking_after(Duration::from_millis(1));
    let (heard, hears) = mpsc::channel();
    let (_client, server) = unix();
    let script = Script::echo().on_room(move |_: &mut Talk, _| {
        heard.send(()).expect("the test listens");
        Ok(Action::ReadPending)
    });
    let record = world.serve(server, script);
    let mailbox = world.mailbox();
    world.until("the connection", || count(&record.connected) == 1);
    let worker = std::thread::spawn(move || {
        let mut turns = 0;
        while world.engine.turn(&mut world.echo, None).expect("a poller") == Turn::Again {
            turns += 1;
        }
        turns
    });
    for _ in 0..5_000 {
        record.resume(Action::WritePending);
        hears.recv_timeout(PATIENCE).expect("a wake-up");
    }
    mailbox.stop();
    let turns: usize = worker.join().expect("the worker ends");
    assert!(turns < 25_000, "{turns} turns for 5,000 signals");
    assert_eq!(record.reason(), Reason::Stopped);
}

#[test]
fn many_threads_hand_in_while_the_engine_runs() {
    let mut world = World::new(8, Some(Duration::from_millis(1)), Watcher::start());
    let (door, mailbox) = (world.door.clone(), world.mailbox());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let door = door.clone();
            std::thread::spawn(move || {
                for number in 0..200 {
                    let (mut client, server) = UnixStream::pair().expect("a pair");
                    let fd = std::os::fd::AsFd::as_fd(&server);
                    let descriptor = Descriptor::adopt(fd).expect("a stream");
                    drop(server);
                    let record = Arc::new(Record::default());
                    door.hand_in(descriptor, (Script::echo(), record))
                        .unwrap_or_else(|(error, _)| panic!("{error}: four of eight places"));
                    let sent = pattern(number * 100 + 1);
                    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                    client.write_all(&sent).expect("room");
                    client.shutdown(std::net::Shutdown::Write).expect("an end");
                    let mut got = Vec::new();
                    client.read_to_end(&mut got).expect("an orderly end");
                    assert!(got == sent);
                    // The place is given back right after the end of the stream.
                    let deadline = Instant::now() + PATIENCE;
                    while door.mailbox().counters().active.get() > 4 {
                        assert!(Instant::now() < deadline);
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    world.until("the threads end", || {
        threads.iter().all(|thread| thread.is_finished())
    });
    for thread in threads {
        thread.join().expect("a thread without a failure");
    }
    world.until("the end", || mailbox.counters().active.get() == 0);
    assert_eq!(mailbox.counters().accepted.get(), 800);
    assert_eq!(mailbox.counters().closed.get(), 800);
    world.stop();
}

#[test]
fn the_words_are_those_of_the_documentation() {
    let words = Action::ALL.map(Action::word);
    let table = [
        "continue",
        "write_pending",
        "read_pending",
        "close",
        "abort",
        "pause",
    ];
    assert_eq!(words, table);
}

#[test]
fn no_worker_without_a_place() {
    let settings = reactor::Settings {
        max_connections: 0,
        linger: None,
    };
    let engine = reactor::Engine::<common::Echo, _>::new(settings, NoDemultiplexer);
    assert!(engine.is_err());
}
