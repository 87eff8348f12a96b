//! Whatever clients do and in whatever order, they get back what they sent.

mod common;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, PATIENCE, Record, Script, World, count, no_block, streams};
use proptest::prelude::*;
use reactor::{Action, Demultiplexer, Reason, SendError};

/// What happens next to one of the connections.
#[derive(Debug, Clone)]
enum Step {
    Send(usize),
    Read(usize),
    HalfClose,
    Vanish,
    /// An action from outside.
    Act(Action),
    Turn,
    /// Long enough for everybody to be parked.
    Rest,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![1usize..100, 1000usize..70_000, 70_000usize..1_000_000];
    let action = prop_oneof![
        Just(Action::Continue),
        Just(Action::WritePending),
        Just(Action::ReadPending),
        Just(Action::Pause),
    ];
    prop_oneof![
        6 => size.clone().prop_map(Step::Send),
        6 => size.prop_map(Step::Read),
        1 => Just(Step::HalfClose),
        1 => Just(Step::Vanish),
        3 => action.prop_map(Step::Act),
        6 => Just(Step::Turn),
        1 => Just(Step::Rest),
    ]
}

struct Conversation {
    client: Option<Box<dyn Client>>,
    record: Arc<Record>,
    sent: Vec<u8>,
    got: Vec<u8>,
    ended: bool,
}

impl Conversation {
    fn new<D: Demultiplexer>(
        world: &mut World<D>,
        client: Box<dyn Client>,
        server: OwnedFd,
    ) -> Self {
        let record = world.serve(server, Script::echo());
        world.until("the connection", || count(&record.connected) == 1);
        Self {
            client: Some(client),
            record,
            sent: Vec::new(),
            got: Vec::new(),
            ended: false,
        }
    }

    fn play<D: Demultiplexer>(&mut self, world: &mut World<D>, step: &Step) {
        match (step, &mut self.client) {
            (Step::Send(size), Some(client)) if !self.ended => {
                // Every byte differs from those around it and from one lap to the next.
                let from = self.sent.len();
                let data: Vec<u8> = (from..from + size).map(|at| (at % 251) as u8).collect();
                if let Some(length) = no_block(client.write(&data)) {
                    self.sent.extend_from_slice(&data[..length]);
                }
            }
            (Step::Read(size), Some(client)) => {
                let mut buffer = vec![0; *size];
                if let Some(length) = no_block(client.read(&mut buffer)) {
                    self.got.extend_from_slice(&buffer[..length]);
                }
            }
            (Step::HalfClose, Some(client)) if !self.ended => {
                client.half_close();
                self.ended = true;
            }
            (Step::Vanish, client) => *client = None,
            (Step::Act(action), _) => self.act(*action),
            (Step::Turn, _) => {
                world.turn(Duration::ZERO);
            }
            (Step::Rest, _) => world.until_quiet(&self.record),
            (Step::Send(_) | Step::Read(_) | Step::HalfClose, _) => {}
        }
    }

    fn act(&self, action: Action) {
        if !self.record.is_lost() {
            match self
                .record
                .descriptor()
                .owner()
                .map(|owner| owner.resume(action))
            {
                Some(Ok(()) | Err(SendError::Full)) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The rest comes back, and the connection is lost once.
    fn finish<D: Demultiplexer>(mut self, world: &mut World<D>) {
        if let Some(mut client) = self.client.take() {
            if !self.ended {
                client.half_close();
            }
            // What is still buffered has to be written before anything is read again.
            self.act(Action::WritePending);
            let rest = world.read_to_end(&mut client).expect("an orderly end");
            self.got.extend(rest);
            assert_eq!(self.got.len(), self.sent.len());
            assert!(self.got == self.sent, "other bytes came back");
            world.until("the loss", || self.record.is_lost());
            assert_eq!(self.record.reason(), Reason::Eof);
        } else {
            self.act(Action::WritePending);
            world.until("the loss", || self.record.is_lost());
        }
        assert_eq!(count(&self.record.lost), 1);
    }
}

fn converse<D: Demultiplexer>(mut world: World<D>, steps: &[(usize, Step)]) {
    let mut conversations: Vec<_> = streams()
        .into_iter()
        .chain(streams())
        .map(|(_, client, server)| Conversation::new(&mut world, client, server))
        .collect();
    for (who, step) in steps {
        conversations[*who].play(&mut world, step);
    }
    for conversation in conversations {
        conversation.finish(&mut world);
    }
    let mailbox = world.mailbox();
    assert_eq!(mailbox.counters().active.get(), 0);
    assert_eq!(mailbox.counters().parked.get(), 0);
    assert!(world.echo.panics.is_empty());
    world.stop();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 60,
        max_shrink_time: PATIENCE.as_millis() as u32,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_sent_comes_back_without_a_demultiplexer(
        steps in prop::collection::vec((0usize..4, step()), 0..80)
    ) {
        converse(World::without_demultiplexer(), &steps);
    }

    #[test]
    fn what_is_sent_comes_back_when_everybody_is_parked_at_once(
        steps in prop::collection::vec((0usize..4, step()), 0..80)
    ) {
        converse(World::parking_after(Duration::ZERO), &steps);
    }

    #[test]
    fn what_is_sent_comes_back_when_the_silent_are_parked(
        steps in prop::collection::vec((0usize..4, step()), 0..80)
    ) {
        converse(World::parking_after(Duration::from_millis(2)), &steps);
    }
}
