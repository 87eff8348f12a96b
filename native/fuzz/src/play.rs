//! The play: who does what, and when.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use parking_lot::Mutex;
use reactor::simulation::{Origin, Peer, Simulation};
use reactor::{Kind, Limits, Readiness, SlowConsumer};

use crate::actor::{Cast, Clock, Deed, ERRORS, Part, Word, do_to};
use crate::record::Record;

/// More connections only make a play longer.
const MAX_GUESTS: usize = 8;

#[derive(Arbitrary, Clone, Debug)]
enum Scene {
    /// Somebody connects, by datagrams or by a stream.
    Connect(bool, Part),
    Send(u8, u16),
    Accept(u8, u16),
    Block(u8),
    Unblock(u8),
    HalfClose(u8),
    Fail(u8, u8),
    /// The kernel reports what need not be true.
    Alarm(u8, bool, bool),
    /// Another thread does something.
    Deed(u8, Deed),
    Wait(u16),
    Run,
    Drain,
    End,
}

#[derive(Arbitrary, Clone, Debug)]
struct Frame {
    idle: Option<u16>,
    handshake: Option<u16>,
    write: Option<u16>,
    high_water: u16,
    low_water: u16,
    policy: u8,
}

impl Frame {
    fn limits(&self) -> Limits {
        let ms = |ms: Option<u16>| ms.map(|ms| Duration::from_millis(u64::from(ms) + 1));
        Limits {
            idle_timeout: ms(self.idle),
            handshake_timeout: ms(self.handshake),
            write_timeout: ms(self.write),
            high_water: self.high_water.into(),
            low_water: self.low_water.min(self.high_water).into(),
            slow_consumer: match self.policy % 4 {
                0 => SlowConsumer::DropOld,
                1 => SlowConsumer::DropNew,
                2 => SlowConsumer::Buffer(usize::from(self.policy)),
                _ => SlowConsumer::Disconnect,
            },
        }
    }
}

struct Guest {
    peer: Peer,
    record: Arc<Mutex<Record>>,
}

impl Guest {
    /// Whether its protocol still does what the play says.
    fn has_answers(&self) -> bool {
        let record = self.record.lock();
        record.connected && record.lost.is_none() && record.answers > 0
    }

    /// Whether its connection is there, and does not merely send what is left.
    fn is_open(&self, record: &Record) -> bool {
        let descriptor = self.peer.link().descriptor();
        let owner = descriptor
            .as_ref()
            .and_then(|descriptor| descriptor.owner());
        record.is_open() && owner.is_some_and(|owner| !owner.is_over())
    }

    fn half_close(&self) {
        self.record.lock().peer_ended = true;
        self.peer.half_close();
    }
}

struct House {
    simulation: Simulation<Cast>,
    cast: Cast,
    guests: Vec<Guest>,
    limits: Limits,
    clock: Clock,
    taken: u64,
}

/// What happens, from the first to the last.
#[derive(Clone, Debug)]
pub struct Play {
    frame: Frame,
    scenes: Vec<Scene>,
}

impl<'a> Arbitrary<'a> for Play {
    fn arbitrary(script: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let frame = script.arbitrary()?;
        let mut scenes = Vec::new();
        while !script.is_empty() {
            scenes.push(script.arbitrary()?);
        }
        Ok(Self { frame, scenes })
    }
}

impl Play {
    /// Plays it.
    ///
    /// # Panics
    /// The engine broke a rule.
    pub fn perform(self) {
        let mut house = House::open(self.frame.limits());
        for scene in self.scenes {
            house.stage(scene);
        }
        house.close();
    }
}

impl House {
    fn open(limits: Limits) -> Self {
        Self {
            simulation: Simulation::with_limits(limits).expect("a descriptor for the poller"),
            cast: Cast::default(),
            guests: Vec::new(),
            limits,
            clock: Arc::default(),
            taken: 0,
        }
    }

    fn stage(&mut self, scene: Scene) {
        match scene {
            Scene::Connect(datagrams, part) => self.connect(datagrams, part),
            Scene::Send(who, length) => self.send(who, length.into()),
            Scene::Accept(who, bytes) => self.with(who, |guest| guest.peer.accept(bytes.into())),
            Scene::Block(who) => self.with(who, |guest| guest.peer.block()),
            Scene::Unblock(who) => self.with(who, |guest| guest.peer.unblock()),
            Scene::HalfClose(who) => self.with(who, Guest::half_close),
            Scene::Fail(who, error) => self.with(who, |guest| {
                guest.record.lock().is_failed();
                guest.peer.fail(ERRORS[usize::from(error) % ERRORS.len()]);
            }),
            Scene::Alarm(who, readable, writable) => self.with(who, |guest| {
                guest.peer.report(Readiness {
                    readable,
                    writable,
                    hung_up: readable,
                    dead: false,
                });
            }),
            Scene::Deed(who, deed) => {
                let clock = Arc::clone(&self.clock);
                self.with(who, |guest| {
                    do_to(guest.peer.link(), &guest.record, &clock, deed);
                });
            }
            Scene::Wait(ms) => self.wait(ms.into()),
            Scene::Run => self.run(),
            Scene::Drain => self.simulation.drain(),
            Scene::End => {
                self.simulation.end();
                self.run();
            }
        }
    }

    fn with(&self, who: u8, act: impl FnOnce(&Guest)) {
        if let Some(guest) = self.guests.get(usize::from(who) % self.guests.len().max(1)) {
            act(guest);
        }
    }

    fn connect(&mut self, datagrams: bool, part: Part) {
        if self.guests.len() == MAX_GUESTS {
            return;
        }
        let drops = !matches!(self.limits.slow_consumer, SlowConsumer::Buffer(_));
        let record = Arc::new(Mutex::new(Record::new(datagrams, drops)));
        let origin = Origin {
            kind: if datagrams { Kind::Udp } else { Kind::Tcp },
            ..Origin::default()
        };
        let opening = (part, Arc::clone(&record), Arc::clone(&self.clock));
        let peer = self.simulation.connect(origin, opening).expect("room");
        self.guests.push(Guest { peer, record });
    }

    fn send(&self, who: u8, length: usize) {
        self.with(who, |guest| {
            let bytes = guest.record.lock().is_sent(length);
            guest.peer.send(&bytes);
        });
    }

    fn run(&mut self) {
        self.simulation
            .run(&mut self.cast)
            .expect("it comes to rest");
        self.look();
    }

    fn wait(&mut self, ms: u64) {
        let dues: Vec<_> = self
            .guests
            .iter()
            .map(|guest| guest.record.lock().due)
            .collect();
        self.simulation
            .advance(&mut self.cast, Duration::from_millis(ms))
            .expect("it comes to rest");
        let now = {
            let mut clock = self.clock.lock();
            *clock += ms;
            *clock
        };
        for (guest, before) in self.guests.iter().zip(dues) {
            let mut record = guest.record.lock();
            if record.due != before {
                // It was set at some time of the wait.
                record.due = record.due.map(|due| due.later(ms));
            } else if guest.is_open(&record) {
                let over = before.is_some_and(|due| due.at <= now);
                assert!(!over, "a timeout was not told");
            }
        }
        self.look();
    }

    /// What holds whenever nothing is left to do.
    fn look(&mut self) {
        for guest in &self.guests {
            let mut record = guest.record.lock();
            let bytes = guest.peer.take();
            self.taken += bytes.len() as u64;
            record.peer_saw(&bytes);
            let open = guest.is_open(&record);
            record.is_quiet(open);
            assert_eq!(
                guest.peer.is_open(),
                record.connected && record.lost.is_none()
            );
        }
        let counters = self.simulation.counters();
        let records = || self.guests.iter().map(|guest| guest.record.lock());
        let count = |fact: fn(&Record) -> bool| records().filter(|it| fact(it)).count() as u64;
        let connected = count(|record| record.connected);
        let (lost, refused) = (
            count(|record| record.lost.is_some()),
            count(|record| record.refused),
        );
        let heard = records().map(|record| record.heard as u64).sum::<u64>();
        assert_eq!(counters.accepted.get(), connected + refused);
        assert_eq!(counters.closed.get(), lost + refused);
        assert_eq!(counters.active.get(), connected - lost);
        assert_eq!(counters.bytes_in.get(), heard);
        assert_eq!(counters.bytes_out.get(), self.taken);
    }

    /// Everybody takes what comes; then everybody goes.
    fn close(mut self) {
        self.run();
        while self.guests.iter().any(Guest::has_answers) {
            self.wake();
        }
        self.wake();
        for guest in &self.guests {
            {
                let record = guest.record.lock();
                if guest.is_open(&record) {
                    record.has_sent_all();
                }
            }
            guest.half_close();
        }
        self.run();
        self.simulation.stop(&mut self.cast).expect("it stops");
        self.look();
        for guest in &self.guests {
            let record = guest.record.lock();
            assert_eq!(
                record.lost.is_some(),
                record.connected,
                "not lost in the end"
            );
        }
    }

    /// Whoever is paused, or waits for a peer, goes on.
    fn wake(&mut self) {
        for guest in &self.guests {
            guest.peer.unblock();
            for deed in [
                Deed::HoldReading(false),
                Deed::SetTimeout(None),
                Deed::Resume(Word::WritePending),
            ] {
                do_to(guest.peer.link(), &guest.record, &self.clock, deed);
            }
        }
        self.run();
    }
}
