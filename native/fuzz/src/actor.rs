//! A handler that does and says what the play wants, and notes what it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Arbitrary;
use nix::errno::Errno;
use parking_lot::Mutex;
use reactor::{Action, Descriptor, Flushed, Handler, Link, Payload, Reason, SlowConsumer, Verdict};

use crate::record::{PERIOD, Record, message};

/// What anybody may do to a connection: its own protocol during a call, or another thread.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Deed {
    Push(u16),
    Message,
    SetTimeout(Option<u16>),
    HoldReading(bool),
    CloseWhenIdle,
    DropOld,
    DropNew,
    Disconnect,
    Resume(Word),
    Close,
    Abort,
}

/// An action.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Word {
    Continue,
    WritePending,
    ReadPending,
    Close,
    Abort,
    Pause,
}

impl From<Word> for Action {
    fn from(word: Word) -> Self {
        match word {
            Word::Continue => Self::Continue,
            Word::WritePending => Self::WritePending,
            Word::ReadPending => Self::ReadPending,
            Word::Close => Self::Close,
            Word::Abort => Self::Abort,
            Word::Pause => Self::Pause,
        }
    }
}

/// What a protocol does in one call, and what it says.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// Bytes that it wants to send, sooner or later.
    buffers: u16,
    /// Of these, at once.
    sends: u16,
    does: Option<Deed>,
    /// `None`: it fails.
    says: Option<Word>,
    /// Whether it tells how much it has to write, so that it is read meanwhile.
    reads_on: bool,
}

/// The part of one connection.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct Part {
    pub(crate) refuses: bool,
    answers: VecDeque<Answer>,
}

/// Milliseconds that have gone by, as far as the play knows: it is somewhat earlier.
pub(crate) type Clock = Arc<Mutex<u64>>;

/// One connection's protocol.
pub(crate) struct Actor {
    answers: VecDeque<Answer>,
    record: Arc<Mutex<Record>>,
    clock: Clock,
    /// Bytes that it has to send.
    pending: usize,
    reads_on: bool,
    /// Whether the last answer was its own doing.
    explicit: bool,
}

impl Actor {
    /// Does what the play wants next. Out of answers, it does what makes sense.
    fn answer(&mut self, descriptor: &Arc<Descriptor>, sensible: Action) -> Verdict {
        let Some(answer) = self.answers.pop_front() else {
            self.explicit = true;
            return self.say(Ok(sensible));
        };
        self.reads_on = answer.reads_on;
        self.pending += usize::from(answer.buffers);
        if answer.sends > 0
            && let Err(reason) = self.send(descriptor, usize::from(answer.sends))
        {
            return self.say(Err(reason));
        }
        if let Some(deed) = answer.does {
            do_to(descriptor.link(), &self.record, &self.clock, deed);
        }
        self.explicit = answer.says.is_some();
        match answer.says {
            // Nothing makes sense in the end: it would be asked to write for ever.
            Some(Word::WritePending) if self.pending == 0 => self.say(Ok(Action::ReadPending)),
            Some(word) => self.say(Ok(word.into())),
            None => self.say(Err(Reason::Exception)),
        }
    }

    fn say(&self, verdict: Verdict) -> Verdict {
        let mut record = self.record.lock();
        record.answers = self.answers.len();
        record.says(verdict);
        verdict
    }

    fn sensible(&self) -> Action {
        if self.pending > 0 {
            Action::WritePending
        } else {
            Action::ReadPending
        }
    }

    /// Sends what is pending, `most` bytes of it.
    fn send(&mut self, descriptor: &Arc<Descriptor>, most: usize) -> Result<(), Reason> {
        let length = self.pending.min(most);
        if length == 0 {
            return Ok(());
        }
        let mut record = self.record.lock();
        let bytes: Vec<u8> = (record.written..record.written + length)
            .map(|at| (at % PERIOD) as u8)
            .collect();
        match descriptor.send(&bytes) {
            Ok(sent) => {
                record.written += sent;
                self.pending -= sent;
                Ok(())
            }
            // It was the fate of one datagram.
            Err(_) if descriptor.fault().is_none() && !descriptor.is_gone() => {
                self.pending -= length;
                Ok(())
            }
            Err(errno) => Err(Reason::Failed(errno)),
        }
    }
}

/// Does a deed to a connection, from wherever.
pub(crate) fn do_to(link: &Arc<Link>, record: &Mutex<Record>, clock: &Clock, deed: Deed) {
    let Some(descriptor) = link.descriptor() else {
        assert!(link.close().is_err() && link.push(b"x").is_err());
        return;
    };
    let Some(owner) = descriptor.owner() else {
        return;
    };
    let mut record = record.lock();
    match deed {
        Deed::Push(length) => {
            let bytes = message(length.into());
            if link.push(&bytes).is_ok() {
                record.was_pushed(bytes.len());
            }
        }
        Deed::Message => {
            if link.send(Box::new(())).is_ok() {
                record.messages_sent += 1;
            }
        }
        Deed::SetTimeout(ms) => {
            owner.set_timeout(ms.map(|ms| Duration::from_millis(ms.into())));
            // It may have been set later than the clock says; then it is due later.
            record.has_timeout(ms.map(|ms| *clock.lock() + u64::from(ms)));
        }
        Deed::HoldReading(hold) => {
            owner.hold_reading(hold);
            record.held = hold;
        }
        Deed::CloseWhenIdle => owner.close_when_idle(),
        Deed::DropOld => policy(owner, &mut record, SlowConsumer::DropOld),
        Deed::DropNew => policy(owner, &mut record, SlowConsumer::DropNew),
        Deed::Disconnect => policy(owner, &mut record, SlowConsumer::Disconnect),
        Deed::Resume(word) => {
            if owner.resume(word.into()).is_ok() {
                record.resumed = true;
                record.asked_to_end |= matches!(word, Word::Close | Word::Abort);
            }
        }
        Deed::Close => record.asked_to_end |= link.close().is_ok(),
        Deed::Abort => record.asked_to_end |= link.abort().is_ok(),
    }
}

fn policy(owner: &reactor::Owner, record: &mut Record, policy: SlowConsumer) {
    owner.set_slow_consumer(policy);
    record.drops = true;
}

/// The handler of all connections.
#[derive(Default)]
pub(crate) struct Cast {
    explicit: bool,
}

impl Handler for Cast {
    type Connection = Actor;
    type Opening = (Part, Arc<Mutex<Record>>, Clock);

    fn connected(
        &mut self,
        descriptor: &Arc<Descriptor>,
        (part, record, clock): Self::Opening,
    ) -> Option<(Actor, Verdict)> {
        {
            let mut record = record.lock();
            assert!(!record.connected && !record.refused, "connected twice");
            record.refused = part.refuses;
            record.connected = !part.refuses;
            record.answers = part.answers.len();
        }
        if part.refuses {
            return None;
        }
        let mut actor = Actor {
            answers: part.answers,
            record,
            clock,
            pending: 0,
            reads_on: false,
            explicit: true,
        };
        let verdict = actor.answer(descriptor, Action::ReadPending);
        Some((actor, verdict))
    }

    fn readable(
        &mut self,
        actor: &mut Actor,
        descriptor: &Arc<Descriptor>,
        data: &[u8],
    ) -> Verdict {
        {
            let mut record = actor.record.lock();
            record.is_told("readable");
            record.hears(data);
        }
        let sensible = actor.sensible();
        let verdict = actor.answer(descriptor, sensible);
        self.explicit = actor.explicit;
        verdict
    }

    fn eof(&mut self, actor: &mut Actor, descriptor: &Arc<Descriptor>) -> Verdict {
        {
            let mut record = actor.record.lock();
            record.is_told("eof");
            assert!(!record.datagrams, "the end of a datagram socket");
            assert!(record.unheard.is_empty(), "hung up before all was heard");
            record.eof = true;
        }
        actor.answer(descriptor, Action::Close)
    }

    fn writable(&mut self, actor: &mut Actor, descriptor: &Arc<Descriptor>) -> Verdict {
        actor.record.lock().is_called("writable");
        if let Err(reason) = actor.send(descriptor, usize::MAX) {
            return actor.say(Err(reason));
        }
        if actor.pending > 0 {
            return actor.say(Ok(Action::Continue));
        }
        let verdict = actor.answer(descriptor, Action::ReadPending);
        // It has nothing to write, so that "continue" would be asked for ever.
        if verdict == Ok(Action::Continue) && actor.pending == 0 {
            return actor.say(Ok(Action::ReadPending));
        }
        verdict
    }

    fn flush(&mut self, actor: &mut Actor, descriptor: &Arc<Descriptor>) -> Flushed {
        assert!(actor.record.lock().lost.is_none(), "flush after the loss");
        match actor.send(descriptor, usize::MAX) {
            Ok(()) if actor.pending == 0 => Flushed::All,
            Ok(()) => Flushed::Blocked,
            Err(reason) => Flushed::Failed(reason),
        }
    }

    fn was_explicit(&self) -> bool {
        self.explicit
    }

    fn backlog(&mut self, actor: &mut Actor) -> Option<usize> {
        actor.reads_on.then_some(actor.pending)
    }

    fn timeout(&mut self, actor: &mut Actor, descriptor: &Arc<Descriptor>) -> Verdict {
        {
            let mut record = actor.record.lock();
            record.is_called("timeout");
            record.due = None;
        }
        actor.answer(descriptor, Action::Close)
    }

    fn draining(&mut self, actor: &mut Actor, descriptor: &Arc<Descriptor>) -> Verdict {
        actor.record.lock().is_called("draining");
        actor.answer(descriptor, Action::Close)
    }

    fn message(&mut self, actor: &mut Actor, descriptor: &Arc<Descriptor>, _: Payload) -> Verdict {
        {
            let mut record = actor.record.lock();
            record.is_called("message");
            assert!(!record.asked_to_end, "a message after somebody closed it");
            record.messages_heard += 1;
        }
        let sensible = actor.sensible();
        actor.answer(descriptor, sensible)
    }

    fn lost(&mut self, actor: Actor, descriptor: &Arc<Descriptor>, reason: Reason) {
        assert!(
            descriptor.link().push(b"x").is_err(),
            "pushed to a connection that is over"
        );
        let mut record = actor.record.lock();
        assert!(record.connected, "lost before connected");
        assert!(record.lost.is_none(), "lost twice");
        record.lost = Some(reason);
    }

    fn panicked(&mut self, _: Option<&Arc<Descriptor>>, message: &str) {
        panic!("a rule is broken: {message}");
    }
}

/// The errors that a connection may end with.
pub(crate) const ERRORS: [Errno; 3] = [Errno::ECONNRESET, Errno::ETIMEDOUT, Errno::EHOSTUNREACH];
