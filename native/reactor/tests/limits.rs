//! What a service sets bounds to: time, memory, and its own life; and what reaches a
//! connection from outside.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Record, Script, World, count, lock, no_block, owner, pattern, streams, tcp, unix};
use reactor::{
    Action, Demultiplexer, Limits, Link, PushError, Reason, SendError, Service, SlowConsumer,
    Stage, Watcher,
};

in_every_world! {
    silence_ends_a_connection,
    a_peer_that_does_not_say_what_it_wants_is_ended,
    an_answer_ends_the_handshake,
    a_pause_is_not_idle,
    a_peer_that_takes_nothing_is_ended,
    a_peer_that_takes_nothing_is_ended_while_its_connection_closes,
    a_timeout_is_told_once,
    a_timeout_takes_the_place_of_the_one_before,
    a_timeout_is_set_from_another_thread,
    held_reading_goes_on_where_it_stopped,
    a_reset_is_noticed_while_reading_is_held,
    reading_goes_on_below_the_high_water_mark,
    who_does_not_tell_its_backlog_is_not_read_while_it_writes,
    waiting_for_data_does_not_forget_what_is_to_be_written,
    pushed_messages_come_whole_and_in_order,
    a_push_waits_until_the_protocol_has_written,
    a_protocol_waits_for_the_rest_of_a_push,
    what_was_pushed_before_a_close_arrives,
    a_peer_too_slow_for_its_policy_is_ended,
    no_more_waits_than_the_high_water_mark,
    an_idle_connection_ends_when_its_service_drains,
    what_is_in_flight_is_finished_when_a_service_drains,
    who_comes_late_hears_of_the_drain,
    who_has_just_come_may_speak_before_a_drain_ends_it,
    an_ending_service_ends_its_own_connections_only,
    messages_come_in_order,
    a_link_never_leads_to_another_connection,
    a_watcher_hears_of_the_end_once,
}

fn limited(change: impl FnOnce(&mut Limits)) -> Arc<Service> {
    let mut limits = Limits::default();
    change(&mut limits);
    Service::new("test".to_owned(), limits, 64)
}

const SOON: Option<Duration> = Some(Duration::from_millis(30));

fn link_of(record: &Record) -> Arc<Link> {
    Arc::clone(record.descriptor().link())
}

/// Has a connection write more than the kernel takes.
fn flood() -> Script {
    Script::echo().on_data(|talk, _| {
        talk.outbox.push_back(pattern(8 << 20));
        Ok(Action::WritePending)
    })
}

fn silence_ends_a_connection<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let service = limited(|limits| limits.idle_timeout = SOON);
        let record = world.serve_for(&service, server, Script::echo());
        assert_eq!(world.exchange(&mut client, b"hello"), b"hello", "{kind}");
        assert_eq!(
            world.read_to_end(&mut client).expect("an end"),
            b"",
            "{kind}"
        );
        assert_eq!(record.reason(), Reason::IdleTimeout, "{kind}");
        assert_eq!(service.counters().timeouts.get(), 1, "{kind}");
        assert_eq!(count(&record.timeouts), 0, "{kind}");
    }
}

fn a_peer_that_does_not_say_what_it_wants_is_ended<D: Demultiplexer>(mut world: World<D>) {
    let service = limited(|limits| limits.handshake_timeout = SOON);
    let waits = Script::echo().on_data(|_, _| Ok(Action::Continue));
    let (mut client, server) = unix();
    let record = world.serve_for(&service, server, waits);
    client.write_all(b"G").expect("room");
    assert_eq!(world.read_to_end(&mut client).expect("an end"), b"");
    assert_eq!(record.reason(), Reason::HandshakeTimeout);
    assert_eq!(count(&record.readable), 1);
}

fn an_answer_ends_the_handshake<D: Demultiplexer>(mut world: World<D>) {
    let service = limited(|limits| limits.handshake_timeout = SOON);
    let (mut client, server) = unix();
    let greeted = world.serve_for(&service, server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    let (_other, server) = unix();
    let silent = world.serve_for(&service, server, Script::echo());
    world.until("the end of the silent one", || silent.is_lost());
    assert!(!greeted.is_lost());
    assert_eq!(world.exchange(&mut client, b"still here"), b"still here");
}

fn a_pause_is_not_idle<D: Demultiplexer>(mut world: World<D>) {
    let service = limited(|limits| limits.idle_timeout = SOON);
    let (mut client, server) = unix();
    let waits = Script::echo().on_data(|_, _| Ok(Action::Pause));
    let paused = world.serve_for(&service, server, waits);
    client.write_all(b"?").expect("room");
    world.until("the pause", || count(&paused.readable) == 1);
    let (_other, server) = unix();
    let idle = world.serve_for(&service, server, Script::echo());
    world.until("the end of the idle one", || idle.is_lost());
    world.until_quiet(&paused);
    assert!(!paused.is_lost());
    paused.resume(Action::ReadPending);
    world.until("the end after the pause", || paused.is_lost());
    assert_eq!(paused.reason(), Reason::IdleTimeout);
}

fn a_peer_that_takes_nothing_is_ended<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let service = limited(|limits| limits.write_timeout = SOON);
        let record = world.serve_for(&service, server, flood());
        client.write_all(b"?").expect("room");
        world.until("the end", || record.is_lost());
        assert_eq!(record.reason(), Reason::WriteTimeout, "{kind}");
    }
}

fn a_peer_that_takes_nothing_is_ended_while_its_connection_closes<D: Demultiplexer>(
    mut world: World<D>,
) {
    let service = limited(|limits| limits.write_timeout = SOON);
    let (mut client, server) = unix();
    let script = Script::echo().on_data(|talk, _| {
        talk.outbox.push_back(pattern(8 << 20));
        Ok(Action::Close)
    });
    let record = world.serve_for(&service, server, script);
    client.write_all(b"?").expect("room");
    world.until("the end", || record.is_lost());
    assert_eq!(record.reason(), Reason::WriteTimeout);
}

fn a_timeout_is_told_once<D: Demultiplexer>(mut world: World<D>) {
    let (_client, server) = unix();
    let script = Script::echo()
        .on_connected(|_, descriptor| {
            owner(descriptor).set_timeout(SOON);
            Ok(Action::ReadPending)
        })
        .on_timeout(|_, _| Ok(Action::Continue));
    let record = world.serve(server, script);
    world.until("the timeout", || count(&record.timeouts) == 1);
    world.until_quiet(&record);
    assert_eq!(count(&record.timeouts), 1);
    let again = record.descriptor();
    owner(&again).set_timeout(Some(Duration::ZERO));
    world.until("the next one", || count(&record.timeouts) == 2);
}

fn a_timeout_takes_the_place_of_the_one_before<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let script = Script::echo().on_connected(|_, descriptor| {
        owner(descriptor).set_timeout(SOON);
        owner(descriptor).set_timeout(None);
        Ok(Action::ReadPending)
    });
    let record = world.serve(server, script);
    let (_other, server) = unix();
    let script = Script::echo().on_connected(|_, descriptor| {
        owner(descriptor).set_timeout(Some(Duration::from_secs(3600)));
        owner(descriptor).set_timeout(SOON);
        Ok(Action::ReadPending)
    });
    let sooner = world.serve(server, script);
    world.until("the end of the other", || sooner.is_lost());
    assert_eq!(sooner.reason(), Reason::Timeout);
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    assert_eq!(count(&record.timeouts), 0);
}

fn a_timeout_is_set_from_another_thread<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let record = world.serve(server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    world.until_quiet(&record);
    let descriptor = record.descriptor();
    std::thread::spawn(move || owner(&descriptor).set_timeout(SOON));
    world.until("the end", || record.is_lost());
    assert_eq!(record.reason(), Reason::Timeout);
}

fn held_reading_goes_on_where_it_stopped<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let record = world.serve(
            server,
            Script::echo().on_data(|talk, descriptor| {
                owner(descriptor).hold_reading(true);
                talk.echo()
            }),
        );
        assert_eq!(world.exchange(&mut client, b"one"), b"one", "{kind}");
        client.write_all(b"two").expect("room");
        world.until_quiet(&record);
        assert_eq!(count(&record.readable), 1, "{kind}");
        owner(&record.descriptor()).hold_reading(false);
        assert_eq!(world.exchange(&mut client, b""), b"", "{kind}");
        world.until("the rest", || count(&record.readable) == 2);
        owner(&record.descriptor()).hold_reading(false);
        let mut echo = [0; 3];
        world.until("the echo", || no_block(client.read(&mut echo)).is_some());
        assert_eq!(&echo, b"two", "{kind}");
    }
}

fn a_reset_is_noticed_while_reading_is_held<D: Demultiplexer>(mut world: World<D>) {
    let (client, server) = tcp();
    let record = world.serve(
        server,
        Script::echo().on_connected(|_, descriptor| {
            owner(descriptor).hold_reading(true);
            Ok(Action::ReadPending)
        }),
    );
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    common::Client::reset(Box::new(client));
    world.until("the loss", || record.is_lost());
    assert_eq!(count(&record.readable), 0);
}

fn reading_goes_on_below_the_high_water_mark<D: Demultiplexer>(mut world: World<D>) {
    const PIECE: usize = 40_000;
    for (kind, mut client, server) in streams() {
        let service = limited(|limits| {
            limits.high_water = 100_000;
            limits.low_water = 20_000;
            // The kernel may take a long time to be full, and nobody reads meanwhile.
            limits.write_timeout = None;
        });
        let record = world.serve_for(&service, server, Script::echo().reads_on());
        // More than all the buffers of a loopback connection, which grow to some 10 MB each way.
        let sent = pattern(64 << 20);
        let mut fed = 0;
        // The peer talks and does not listen, until nobody listens to it either.
        let mut stuck = 0;
        while stuck < 200 {
            let before = (fed, count(&record.bytes));
            let end = sent.len().min(fed + PIECE);
            fed += no_block(client.write(&sent[fed..end])).unwrap_or(0);
            world.turn(Duration::from_millis(1));
            stuck = if (fed, count(&record.bytes)) == before {
                stuck + 1
            } else {
                0
            };
        }
        let heard = count(&record.bytes) as u64;
        let waiting = heard - service.counters().bytes_out.get();
        assert!(waiting > 100_000, "{kind}: read until the mark, {waiting}");
        assert!(
            waiting <= 100_000 + 64 * 1024,
            "{kind}: and no further, {waiting}"
        );
        let rest = sent.len() - fed;
        assert!(rest > 0, "{kind}: the kernel holds the rest back");
        let mut got = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        while got.len() < sent.len() {
            fed += no_block(client.write(&sent[fed..])).unwrap_or(0);
            world.turn(Duration::from_millis(1));
            while let Some(length) = no_block(client.read(&mut buffer)) {
                got.extend_from_slice(&buffer[..length]);
            }
        }
        assert!(got == sent, "{kind}: every byte comes back in its place");
    }
}

fn who_does_not_tell_its_backlog_is_not_read_while_it_writes<D: Demultiplexer>(
    mut world: World<D>,
) {
    let (mut client, server) = unix();
    let record = world.serve(server, flood());
    client.write_all(b"?").expect("room");
    world.until("a full socket", || count(&record.writable) > 0);
    client.write_all(b"more").expect("room");
    world.until_quiet(&record);
    assert_eq!(count(&record.readable), 1);
}

fn waiting_for_data_does_not_forget_what_is_to_be_written<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let service = limited(|limits| limits.high_water = 16 << 20);
    let mut first = true;
    let script = Script::echo().reads_on().on_data(move |talk, _| {
        if std::mem::take(&mut first) {
            talk.outbox.push_back(pattern(4 << 20));
            Ok(Action::WritePending)
        } else {
            Ok(Action::ReadPending)
        }
    });
    let record = world.serve_for(&service, server, script);
    client.write_all(b"?").expect("room");
    world.until("a full socket", || count(&record.writable) > 0);
    client.write_all(b"more").expect("room");
    world.until("it is read meanwhile", || count(&record.readable) == 2);
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("a half-close");
    assert!(world.read_to_end(&mut client).expect("all of it") == pattern(4 << 20));
}

/// Messages of many sizes, each a run of one byte.
fn messages() -> Vec<Vec<u8>> {
    let sizes = [1, 700, 30_000, 64 * 1024, 3, 50_000, 9_999];
    (0..120u8)
        .map(|number| vec![number; sizes[usize::from(number) % sizes.len()]])
        .collect()
}

fn pushed_messages_come_whole_and_in_order<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let service = limited(|limits| limits.high_water = 64 << 20);
        let record = world.serve_for(&service, server, Script::echo());
        world.until("the connection", || count(&record.connected) == 1);
        let link = link_of(&record);
        for message in messages() {
            link.push(&message).expect("it is taken");
            world.turn(Duration::ZERO);
        }
        link.close().expect("it is open");
        let got = world.read_to_end(&mut client).expect("all of it");
        assert!(got == messages().concat(), "{kind}");
        assert_eq!(count(&record.writable), 0, "{kind}");
        assert_eq!(record.reason(), Reason::Closed, "{kind}");
    }
}

fn a_push_waits_until_the_protocol_has_written<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let record = world.serve(server, flood());
    client.write_all(b"?").expect("room");
    world.until("a full socket", || count(&record.writable) > 0);
    link_of(&record).push(b"pushed").expect("it is taken");
    world.until_quiet(&record);
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("a half-close");
    let got = world.read_to_end(&mut client).expect("all of it");
    let mut wanted = pattern(8 << 20);
    wanted.extend_from_slice(b"pushed");
    assert!(got == wanted);
}

fn a_protocol_waits_for_the_rest_of_a_push<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let service = limited(|limits| limits.high_water = 64 << 20);
    let record = world.serve_for(&service, server, Script::echo());
    world.until("the connection", || count(&record.connected) == 1);
    let large = pattern(4 << 20);
    link_of(&record).push(&large).expect("it is taken");
    world.until("a part is sent", || service.counters().bytes_out.get() > 0);
    world.until_quiet(&record);
    client.write_all(b"echo").expect("room");
    world.until("it is heard", || count(&record.readable) == 1);
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("a half-close");
    let got = world.read_to_end(&mut client).expect("all of it");
    assert!(got == [large, b"echo".to_vec()].concat());
}

fn what_was_pushed_before_a_close_arrives<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let service = limited(|limits| limits.high_water = 64 << 20);
    let script = Script::echo().on_data(|talk, _| {
        talk.outbox.push_back(b"last word".to_vec());
        Ok(Action::Close)
    });
    let record = world.serve_for(&service, server, script);
    world.until("the connection", || count(&record.connected) == 1);
    let large = pattern(4 << 20);
    link_of(&record).push(&large).expect("it is taken");
    link_of(&record).push(b"and more").expect("it is taken");
    client.write_all(b"?").expect("room");
    let got = world.read_to_end(&mut client).expect("all of it");
    assert!(got == [large, b"and more".to_vec(), b"last word".to_vec()].concat());
}

fn a_peer_too_slow_for_its_policy_is_ended<D: Demultiplexer>(mut world: World<D>) {
    for policy in [SlowConsumer::Disconnect, SlowConsumer::Buffer(2)] {
        let (_client, server) = unix();
        let service = limited(|limits| {
            limits.high_water = 64 << 20;
            limits.slow_consumer = policy;
        });
        let record = world.serve_for(&service, server, Script::echo());
        world.until("the connection", || count(&record.connected) == 1);
        let link = link_of(&record);
        let refused = (0..64).find_map(|_| {
            let refused = link.push(&pattern(1 << 20)).err();
            world.turn(Duration::ZERO);
            refused
        });
        assert_eq!(refused, Some(PushError::Closed), "{policy:?}");
        world.until("the end", || record.is_lost());
        assert_eq!(record.reason(), Reason::SlowConsumer, "{policy:?}");
    }
}

fn no_more_waits_than_the_high_water_mark<D: Demultiplexer>(mut world: World<D>) {
    for policy in [SlowConsumer::DropOld, SlowConsumer::DropNew] {
        let (mut client, server) = unix();
        let service = limited(|limits| limits.slow_consumer = policy);
        let record = world.serve_for(&service, server, Script::echo());
        world.until("the connection", || count(&record.connected) == 1);
        let link = link_of(&record);
        let mut taken = 0;
        for _ in 0..1000 {
            taken += u64::from(link.push(&pattern(10_000)).is_ok());
            world.turn(Duration::ZERO);
        }
        assert_eq!(
            link.push(&pattern(64 * 1024 + 1)),
            Err(PushError::TooLarge),
            "{policy:?}"
        );
        let dropped = service.counters().drops.get();
        assert!(dropped > 0, "{policy:?}");
        link.close().expect("it is open");
        let got = world.read_to_end(&mut client).expect("the rest").len() as u64;
        assert_eq!(got, (1000 - dropped) * 10_000, "{policy:?}");
        assert_eq!(policy == SlowConsumer::DropOld, taken == 1000, "{policy:?}");
        assert_eq!(record.reason(), Reason::Closed);
    }
}

fn an_idle_connection_ends_when_its_service_drains<D: Demultiplexer>(mut world: World<D>) {
    for (kind, mut client, server) in streams() {
        let service = limited(|_| {});
        let record = world.serve_for(&service, server, Script::echo());
        assert_eq!(world.exchange(&mut client, b"hello"), b"hello", "{kind}");
        world.until_quiet(&record);
        service.set_stage(Stage::Draining);
        world.mailbox().review();
        assert_eq!(
            world.read_to_end(&mut client).expect("an end"),
            b"",
            "{kind}"
        );
        assert_eq!(record.reason(), Reason::Drained, "{kind}");
        assert_eq!(service.active(), 0, "{kind}");
    }
}

fn what_is_in_flight_is_finished_when_a_service_drains<D: Demultiplexer>(mut world: World<D>) {
    let service = limited(|_| {});
    let (mut client, server) = unix();
    let record = world.serve_for(&service, server, Script::echo());
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    // Nobody has told the engine of it yet.
    let request = pattern(3 << 20);
    let sent = no_block(client.write(&request)).expect("room");
    service.set_stage(Stage::Draining);
    world.mailbox().review();
    let got = world.read_to_end(&mut client).expect("an end");
    assert!(got == request[..sent]);
    assert_eq!(record.reason(), Reason::Drained);
}

fn who_comes_late_hears_of_the_drain<D: Demultiplexer>(mut world: World<D>) {
    let service = limited(|_| {});
    service.set_stage(Stage::Draining);
    let (mut client, server) = unix();
    client.write_all(b"too late?").expect("room");
    let record = world.serve_for(&service, server, Script::echo());
    assert_eq!(
        world.read_to_end(&mut client).expect("an end"),
        b"too late?"
    );
    assert_eq!(record.reason(), Reason::Drained);
}

fn who_has_just_come_may_speak_before_a_drain_ends_it<D: Demultiplexer>(mut world: World<D>) {
    let service = limited(|_| {});
    let (mut client, server) = unix();
    let record = world.serve_for(&service, server, Script::echo());
    let (_silent, server) = unix();
    let silent = world.serve_for(&service, server, Script::echo());
    world.until("the connections", || count(&silent.connected) == 1);
    service.set_stage(Stage::Draining);
    world.mailbox().review();
    world.until_quiet(&record);
    assert_eq!(
        world.exchange(&mut client, b"just in time"),
        b"just in time"
    );
    assert_eq!(world.read_to_end(&mut client).expect("an end"), b"");
    assert!(!silent.is_lost());
    world.until("the end of the one that says nothing", || silent.is_lost());
    assert_eq!(silent.reason(), Reason::Drained);
}

fn an_ending_service_ends_its_own_connections_only<D: Demultiplexer>(mut world: World<D>) {
    let (ending, other) = (limited(|_| {}), limited(|_| {}));
    let (mut client, server) = unix();
    let record = world.serve_for(
        &ending,
        server,
        Script::echo().on_draining(|_, _| Ok(Action::Continue)),
    );
    let (mut bystander, server) = unix();
    let untouched = world.serve_for(&other, server, Script::echo());
    assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
    ending.set_stage(Stage::Draining);
    world.mailbox().review();
    world.until_quiet(&record);
    assert!(!record.is_lost());
    ending.set_stage(Stage::Ending);
    world.mailbox().review();
    assert_eq!(world.read_to_end(&mut client).expect("an end"), b"");
    assert_eq!(record.reason(), Reason::Stopped);
    assert_eq!(world.exchange(&mut bystander, b"hello"), b"hello");
    assert!(!untouched.is_lost());
    assert_eq!((ending.active(), other.active()), (0, 1));
}

fn messages_come_in_order<D: Demultiplexer>(mut world: World<D>) {
    let (mut client, server) = unix();
    let record = world.serve(server, Script::echo());
    world.until("the connection", || count(&record.connected) == 1);
    world.until_quiet(&record);
    let link = link_of(&record);
    let texts: Vec<String> = (0..500).map(|number| format!("{number};")).collect();
    for text in &texts {
        link.send(Box::new(text.clone())).expect("room");
    }
    world
        .mailbox()
        .errand(Box::new("for the handler".to_owned()))
        .expect("room");
    world.until("all of them", || lock(&record.messages).len() == 500);
    assert_eq!(*lock(&record.messages), texts);
    assert_eq!(world.echo.errands, ["for the handler"]);
    client
        .shutdown(std::net::Shutdown::Write)
        .expect("a half-close");
    let got = world.read_to_end(&mut client).expect("all of it");
    assert_eq!(got, texts.concat().into_bytes());
    assert_eq!(link.send(Box::new(String::new())), Err(SendError::Closed));
}

fn a_link_never_leads_to_another_connection<D: Demultiplexer>(mut world: World<D>) {
    let mut links: Vec<Arc<Link>> = Vec::new();
    for _ in 0..300 {
        let (mut client, server): (UnixStream, UnixStream) = unix();
        let record = world.serve(server, Script::echo());
        assert_eq!(world.exchange(&mut client, b"hello"), b"hello");
        links.push(link_of(&record));
        for stale in &links[..links.len() - 1] {
            assert_eq!(stale.push(b"stray"), Err(PushError::Closed));
            assert_eq!(
                stale.send(Box::new("stray".to_owned())),
                Err(SendError::Closed)
            );
            assert_eq!(stale.close(), Err(SendError::Closed));
        }
        client
            .shutdown(std::net::Shutdown::Write)
            .expect("a half-close");
        assert_eq!(world.read_to_end(&mut client).expect("an end"), b"");
        world.until("the end", || record.is_lost());
    }
}

struct Note {
    told: Arc<Mutex<Vec<Reason>>>,
    stale: Arc<AtomicUsize>,
}

impl Watcher for Note {
    fn is_stale(&self) -> bool {
        self.stale.load(Ordering::SeqCst) > 0
    }

    fn ended(self: Box<Self>, reason: Reason) {
        lock(&self.told).push(reason);
    }
}

fn a_watcher_hears_of_the_end_once<D: Demultiplexer>(mut world: World<D>) {
    let (client, server) = unix();
    let record = world.serve(server, Script::echo());
    world.until("the connection", || count(&record.connected) == 1);
    let link = link_of(&record);
    let told = Arc::new(Mutex::new(Vec::new()));
    let stale = Arc::new(AtomicUsize::new(1));
    for _ in 0..10_000 {
        let note = Note {
            told: Arc::clone(&told),
            stale: Arc::clone(&stale),
        };
        link.watch(Box::new(note)).expect("it is open");
    }
    assert!(Arc::strong_count(&stale) < 100, "stale ones are forgotten");
    stale.store(0, Ordering::SeqCst);
    let remembered = Arc::strong_count(&stale) - 1;
    drop(client);
    world.until("the end", || record.is_lost());
    assert_eq!(*lock(&told), vec![Reason::Eof; remembered]);
    let late = Note {
        told: Arc::clone(&told),
        stale,
    };
    assert_eq!(link.watch(Box::new(late)), Err(SendError::Closed));
}
