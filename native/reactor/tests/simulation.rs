//! The simulated kernel and the clock that is moved by hand.

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Echo, Record, Script, count, lock, owner};
use nix::errno::Errno;
use proptest::prelude::*;
use reactor::simulation::{Origin, Peer, Simulation, Unrest};
use reactor::{
    Action, Kind, Limits, MAX_READ_BYTES, PushError, Readiness, Reason, SendError, SlowConsumer,
};

/// A simulation with its handler.
struct Stage {
    simulation: Simulation<Echo>,
    echo: Echo,
}

impl Stage {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        Self {
            simulation: Simulation::with_limits(limits).expect("a poller"),
            echo: Echo::default(),
        }
    }

    fn connect(&mut self, script: Script) -> (Peer, Arc<Record>) {
        self.connect_as(Origin::default(), script)
    }

    fn connect_as(&mut self, origin: Origin, script: Script) -> (Peer, Arc<Record>) {
        let record = Arc::new(Record::default());
        let peer = self
            .simulation
            .connect(origin, (script, Arc::clone(&record)))
            .expect("room");
        self.run();
        (peer, record)
    }

    fn run(&mut self) {
        self.simulation.run(&mut self.echo).expect("rest");
    }

    fn advance(&mut self, ms: u64) {
        let by = Duration::from_millis(ms);
        self.simulation.advance(&mut self.echo, by).expect("rest");
    }
}

#[test]
fn what_is_sent_comes_back() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.send(b"hello");
    assert_eq!(peer.take(), b"");
    stage.run();
    assert_eq!(peer.take(), b"hello");
    assert_eq!(count(&record.connected), 1);
    assert!(peer.is_open());
}

#[test]
fn each_fragment_is_read_by_itself() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&heard);
    let script = Script::echo().on_data(move |talk, _| {
        lock(&note).push(talk.heard.len());
        talk.echo()
    });
    let mut stage = Stage::new();
    let (peer, _) = stage.connect(script);
    for fragment in [&b"a"[..], b"", b"bc", &[7; MAX_READ_BYTES + 1]] {
        peer.send(fragment);
    }
    stage.run();
    assert_eq!(*lock(&heard), [1, 2, MAX_READ_BYTES, 1]);
    assert_eq!(peer.take().len(), MAX_READ_BYTES + 4);
}

#[test]
fn data_is_heard_before_the_end_of_the_stream() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.send(b"one");
    peer.send(b"two");
    peer.half_close();
    peer.send(b"too late");
    stage.run();
    assert_eq!(count(&record.bytes), 6);
    assert_eq!(count(&record.eof), 1);
    assert_eq!(record.reason(), Reason::Eof);
    assert_eq!(peer.take(), b"onetwo");
    assert!(!peer.is_open());
}

#[test]
fn data_is_heard_before_a_reset() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo().on_data(|_, _| Ok(Action::Continue)));
    peer.send(b"last words");
    peer.fail(Errno::ECONNRESET);
    stage.run();
    assert_eq!(count(&record.bytes), 10);
    assert_eq!(count(&record.eof), 0);
    assert_eq!(record.reason(), Reason::Failed(Errno::ECONNRESET));
}

#[test]
fn any_error_can_end_a_connection() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.fail(Errno::ETIMEDOUT);
    stage.run();
    assert_eq!(record.reason(), Reason::Failed(Errno::ETIMEDOUT));
}

#[test]
fn a_paused_connection_notices_a_reset() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo().on_data(|_, _| Ok(Action::Pause)));
    peer.send(b"x");
    stage.run();
    peer.send(b"unheard");
    peer.fail(Errno::ECONNRESET);
    stage.run();
    assert_eq!(record.reason(), Reason::PeerGone);
    assert_eq!(count(&record.bytes), 1);
}

#[test]
fn what_is_not_taken_waits() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.block();
    peer.send(b"hello");
    stage.run();
    let calls = count(&record.writable);
    stage.run();
    assert_eq!(count(&record.writable), calls, "it is not called in vain");
    assert_eq!(peer.take(), b"");
    peer.accept(2);
    peer.accept(1);
    stage.run();
    assert_eq!(peer.take(), b"hel");
    peer.unblock();
    stage.run();
    assert_eq!(peer.take(), b"lo");
}

#[test]
fn a_close_sends_the_rest_as_it_is_taken() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.accept(1);
    peer.send(b"abc");
    peer.half_close();
    stage.run();
    record.resume(Action::Close);
    stage.run();
    assert!(peer.is_open());
    assert_eq!(peer.take(), b"a");
    peer.accept(1);
    stage.run();
    assert_eq!(peer.take(), b"b");
    peer.unblock();
    stage.run();
    assert_eq!(peer.take(), b"c");
    assert!(!peer.is_open());
}

#[test]
fn a_false_alarm_does_no_harm() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.report(Readiness::ANY);
    stage.run();
    assert_eq!(record.calls(), 0);
    peer.send(b"x");
    stage.run();
    assert_eq!(peer.take(), b"x");
}

#[test]
fn time_goes_from_deadline_to_deadline() {
    let times = Arc::new(Mutex::new(0));
    let note = Arc::clone(&times);
    let script = Script::echo()
        .on_connected(|_, descriptor| {
            owner(descriptor).set_timeout(Some(Duration::from_millis(100)));
            Ok(Action::ReadPending)
        })
        .on_timeout(move |_, descriptor| {
            *lock(&note) += 1;
            owner(descriptor).set_timeout(Some(Duration::from_millis(100)));
            Ok(Action::Continue)
        });
    let mut stage = Stage::new();
    let began = Instant::now();
    let (_peer, _) = stage.connect(script);
    stage.advance(99);
    assert_eq!(*lock(&times), 0);
    stage.advance(1);
    assert_eq!(*lock(&times), 1);
    stage.advance(60_000);
    assert_eq!(*lock(&times), 601);
    assert!(began.elapsed() < Duration::from_secs(60), "nobody waited");
}

#[test]
fn time_stands_unless_it_is_moved() {
    let mut stage = Stage::with_limits(Limits {
        idle_timeout: Some(Duration::from_millis(1)),
        ..Limits::default()
    });
    let (peer, record) = stage.connect(Script::echo());
    std::thread::sleep(Duration::from_millis(2));
    stage.run();
    assert!(!record.is_lost());
    peer.send(b"x");
    stage.advance(1);
    assert_eq!(record.reason(), Reason::IdleTimeout);
}

#[test]
fn limits_hold() {
    let limits = Limits {
        handshake_timeout: Some(Duration::from_secs(1)),
        write_timeout: Some(Duration::from_secs(2)),
        ..Limits::default()
    };
    let mut stage = Stage::with_limits(limits);
    let (_silent, mute) = stage.connect(Script::echo());
    let (slow, stuck) = stage.connect(Script::echo());
    slow.block();
    slow.send(b"x");
    stage.advance(999);
    assert!(!mute.is_lost() && !stuck.is_lost());
    stage.advance(1);
    assert_eq!(mute.reason(), Reason::HandshakeTimeout);
    stage.advance(999);
    assert!(!stuck.is_lost());
    stage.advance(1);
    assert_eq!(stuck.reason(), Reason::WriteTimeout);
}

#[test]
fn messages_and_pushed_bytes_arrive() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.link().send(Box::new("told".to_owned())).expect("room");
    peer.link().push(b"pushed").expect("room");
    stage.run();
    assert_eq!(*lock(&record.messages), ["told"]);
    assert_eq!(peer.take(), b"toldpushed");
}

#[test]
fn a_slow_peer_costs_what_its_policy_says() {
    let mut stage = Stage::with_limits(Limits {
        slow_consumer: SlowConsumer::DropNew,
        ..Limits::default()
    });
    let (peer, _) = stage.connect(Script::echo());
    peer.block();
    peer.link().push(&[1; 40_000]).expect("room");
    stage.run();
    let dropped = peer.link().push(&[2; 40_000]);
    assert_eq!(dropped, Err(PushError::Dropped));
    peer.unblock();
    stage.run();
    assert_eq!(peer.take(), [1; 40_000]);
}

#[test]
fn a_drained_connection_ends_when_it_is_idle() {
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    peer.send(b"x");
    stage.run();
    peer.block();
    peer.send(b"y");
    stage.run();
    stage.simulation.drain();
    stage.run();
    assert!(!record.is_lost());
    peer.unblock();
    stage.run();
    assert_eq!(peer.take(), b"xy");
    assert_eq!(record.reason(), Reason::Drained);
}

#[test]
fn all_end_when_the_service_or_the_engine_does() {
    let mut stage = Stage::new();
    let (_peer, record) = stage.connect(Script::echo());
    stage.simulation.end();
    stage.run();
    assert_eq!(record.reason(), Reason::Stopped);
    let mut stage = Stage::new();
    let (peer, record) = stage.connect(Script::echo());
    stage.simulation.stop(&mut stage.echo).expect("it stops");
    assert_eq!(record.reason(), Reason::Stopped);
    assert!(!peer.is_open());
    let opening = (Script::echo(), Arc::default());
    let refused = stage.simulation.connect(Origin::default(), opening);
    assert_eq!(refused.err(), Some(SendError::Closed));
    stage.run();
}

#[test]
fn there_are_no_more_connections_than_a_hundred() {
    let mut stage = Stage::new();
    let peers: Vec<_> = (0..100).map(|_| stage.connect(Script::echo())).collect();
    let opening = || (Script::echo(), Arc::default());
    let refused = stage.simulation.connect(Origin::default(), opening());
    assert_eq!(refused.err(), Some(SendError::Full));
    peers[50].0.half_close();
    stage.run();
    let next = stage.simulation.connect(Origin::default(), opening());
    assert!(next.is_ok());
}

#[test]
fn a_handler_that_spins_is_found_out() {
    let mut stage = Stage::new();
    let (peer, _) = stage.connect(Script::echo().on_room(|_, _| Ok(Action::Continue)));
    peer.send(b"x");
    let unrest = stage.simulation.run(&mut stage.echo).expect_err("no rest");
    assert!(matches!(unrest, Unrest::Spinning));
    // Nor does one that asks to be woken at once, again and again.
    let at_once = |descriptor: &reactor::Descriptor| {
        owner(descriptor).set_timeout(Some(Duration::ZERO));
        Ok(Action::ReadPending)
    };
    let mut stage = Stage::new();
    let script = Script::echo()
        .on_data(move |_, descriptor| at_once(descriptor))
        .on_timeout(move |_, descriptor| at_once(descriptor));
    let (peer, _) = stage.connect(script);
    peer.send(b"x");
    let unrest = stage.simulation.run(&mut stage.echo).expect_err("no rest");
    assert!(matches!(unrest, Unrest::Spinning));
}

#[test]
fn a_long_answer_is_no_spinning() {
    let mut stage = Stage::new();
    let mut left = 100_000;
    let script = Script::echo().on_room(move |_, descriptor| {
        let sent = descriptor.send(b"x").map_err(Reason::Failed)?;
        left -= sent;
        Ok(if left == 0 {
            Action::ReadPending
        } else {
            Action::Continue
        })
    });
    let (peer, _) = stage.connect(script);
    peer.send(b"go");
    stage.run();
    assert_eq!(peer.take().len(), 100_000);
}

#[test]
fn datagrams_keep_their_bounds_and_senders() {
    let senders = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&senders);
    let script = Script::echo().on_data(move |talk, descriptor| {
        lock(&note).push(descriptor.peer().map(|peer| peer.to_string()));
        talk.echo()
    });
    let udp = Origin {
        kind: Kind::Udp,
        peer: None,
    };
    let mut stage = Stage::new();
    let (peer, record) = stage.connect_as(udp, script);
    let from = |port| SocketAddr::from(([192, 0, 2, 1], port));
    for (port, datagram) in [(1, &b"one"[..]), (2, b""), (3, b"three")] {
        peer.send_as(from(port), datagram);
    }
    // A datagram socket outlives an error.
    peer.fail(Errno::ECONNREFUSED);
    peer.half_close();
    stage.run();
    assert_eq!(peer.take_pieces(), [&b"one"[..], b"", b"three"]);
    let expected = ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3"];
    let senders = lock(&senders).clone();
    assert_eq!(senders.into_iter().flatten().collect::<Vec<_>>(), expected);
    assert!(!record.is_lost());
}

#[test]
fn a_simulated_descriptor_has_a_number_that_no_other_has() {
    let mut stage = Stage::new();
    let (_first, one) = stage.connect(Script::echo());
    let (_second, other) = stage.connect(Script::echo());
    let numbers = [&one, &other].map(|record| record.descriptor().number());
    assert!(numbers.iter().all(|number| *number >= 1 << 30));
    assert_ne!(numbers[0], numbers[1]);
    assert_eq!(one.descriptor().kind(), Kind::Tcp);
    let peer = one.descriptor().peer().map(|peer| peer.to_string());
    assert_eq!(peer.as_deref(), Some("192.0.2.1:50000"));
}

/// What a script does to a connection.
#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Accept(usize),
    Block,
    Unblock,
    Alarm,
    Act(Action),
    Run,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![1usize..10, 1000usize..70_000];
    let action = prop_oneof![
        Just(Action::Continue),
        Just(Action::WritePending),
        Just(Action::ReadPending),
        Just(Action::Pause),
    ];
    let step = prop_oneof![
        4 => size.clone().prop_map(Step::Send),
        4 => size.prop_map(Step::Accept),
        1 => Just(Step::Block),
        1 => Just(Step::Unblock),
        1 => Just(Step::Alarm),
        2 => action.prop_map(Step::Act),
        4 => Just(Step::Run),
        1 => (0u64..30_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..60)
}

/// Plays a script; returns what was sent, what came back and how often the handler was called.
fn play(steps: &[Step], script: Script) -> (Vec<u8>, Vec<u8>, usize) {
    let mut stage = Stage::with_limits(Limits {
        write_timeout: None,
        ..Limits::default()
    });
    let (peer, record) = stage.connect(script);
    let mut sent = Vec::new();
    for step in steps {
        match step {
            Step::Send(size) => {
                let from = sent.len();
                sent.extend((from..from + size).map(|at| (at % 251) as u8));
                peer.send(&sent[from..]);
            }
            Step::Accept(bytes) => peer.accept(*bytes),
            Step::Block => peer.block(),
            Step::Unblock => peer.unblock(),
            Step::Alarm => peer.report(Readiness::ANY),
            Step::Act(action) => record.resume(*action),
            Step::Run => stage.run(),
            Step::Wait(ms) => stage.advance(*ms),
        }
    }
    peer.unblock();
    record.resume(Action::WritePending);
    stage.run();
    assert!(!record.is_lost(), "{:?}", record.reason());
    assert!(stage.echo.panics.is_empty(), "{:?}", stage.echo.panics);
    (sent, peer.take(), record.calls())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn an_echo_sends_back_what_it_got_whatever_happens(steps in steps()) {
        let (sent, got, _) = play(&steps, Script::echo());
        prop_assert!(sent == got, "{} of {} bytes", got.len(), sent.len());
        let (sent, got, _) = play(&steps, Script::echo().reads_on());
        prop_assert!(sent == got, "{} of {} bytes", got.len(), sent.len());
    }

    #[test]
    fn the_same_script_is_the_same_story(steps in steps()) {
        prop_assert_eq!(play(&steps, Script::echo()), play(&steps, Script::echo()));
    }
}

#[test]
fn no_callback_begins_for_whoever_was_ended_and_resumed_before() {
    for (first, second) in [
        (Action::Close, Action::WritePending),
        (Action::WritePending, Action::Close),
        (Action::Abort, Action::WritePending),
    ] {
        let mut stage = Stage::new();
        let (peer, record) = stage.connect(Script::default());
        let descriptor = peer.link().descriptor().expect("it is open");
        for action in [first, second] {
            owner(&descriptor).resume(action).expect("it is open");
        }
        drop(descriptor);
        stage.run();
        assert_eq!(count(&record.writable), 0, "{first:?}, {second:?}");
        assert!(record.is_lost());
    }
}

#[test]
fn whoever_was_ended_is_not_asked_to_end() {
    let mut stage = Stage::new();
    let script = Script::default().on_draining(|_, _| Err(Reason::Exception));
    let (peer, record) = stage.connect(script);
    peer.link().abort().expect("it is open");
    stage.simulation.drain();
    stage.run();
    assert_eq!(record.reason(), Reason::Aborted);
}
