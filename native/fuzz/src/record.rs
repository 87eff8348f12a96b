//! What is known of one connection, and the rules that hold for it at all times.

use std::collections::VecDeque;

use reactor::{Action, Reason};

/// Pushed messages begin with this byte, which no protocol of a play sends.
const BEGIN: u8 = 0x80;
const MIDDLE: u8 = 0x81;
const END: u8 = 0x82;
/// The bytes of a protocol count up from 0 to this, again and again.
pub(crate) const PERIOD: usize = 0x80;

/// What befell a connection, as both sides saw it.
#[derive(Default)]
pub(crate) struct Record {
    pub(crate) datagrams: bool,
    pub(crate) connected: bool,
    pub(crate) refused: bool,
    /// Answers of the play that its protocol has left.
    pub(crate) answers: usize,
    pub(crate) lost: Option<Reason>,
    /// The peer ended its stream or broke it.
    pub(crate) peer_ended: bool,
    pub(crate) eof: bool,
    /// The protocol said that it is to end.
    pub(crate) ending: bool,
    /// Somebody asked for the end over the link.
    pub(crate) asked_to_end: bool,
    /// It was paused by its own word.
    pub(crate) paused: bool,
    /// Somebody gave it an action from outside since all was quiet.
    pub(crate) resumed: bool,
    pub(crate) held: bool,
    /// Bytes the peer sent that the protocol has not heard; datagrams by their lengths.
    pub(crate) unheard: VecDeque<u8>,
    pub(crate) heard: usize,
    /// Bytes of the protocol that the kernel took.
    pub(crate) written: usize,
    /// Of these, the bytes that the peer has seen.
    seen: usize,
    /// The messages that were taken to be pushed, by length, oldest first.
    pushed: VecDeque<usize>,
    /// Messages may be dropped, by policy or because the connection ends.
    pub(crate) drops: bool,
    /// Bytes of a pushed message that the peer has seen in part.
    partial: usize,
    pub(crate) messages_sent: usize,
    pub(crate) messages_heard: usize,
    /// When its timeout is due, if it has one.
    pub(crate) due: Option<Due>,
    timeouts: u32,
}

/// The time, in milliseconds, after which a timeout must have been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: u64,
    /// Tells it from others of the same time.
    number: u32,
}

impl Due {
    pub(crate) const fn later(self, ms: u64) -> Self {
        Self {
            at: self.at + ms,
            number: self.number,
        }
    }
}

/// A pushed message of `length` bytes.
pub(crate) fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![MIDDLE; length.max(2)];
    bytes[0] = BEGIN;
    if let Some(last) = bytes.last_mut() {
        *last = END;
    }
    bytes
}

impl Record {
    pub(crate) fn new(datagrams: bool, drops: bool) -> Self {
        Self {
            datagrams,
            drops,
            ..Self::default()
        }
    }

    /// Before each call that an event is the cause of.
    pub(crate) fn is_called(&self, callback: &str) {
        assert!(self.connected, "{callback} before connected");
        assert!(self.lost.is_none(), "{callback} after the loss");
        assert!(!self.ending, "{callback} after it said that it is to end");
    }

    /// Before each call that brings something of the peer.
    pub(crate) fn is_told(&self, callback: &str) {
        self.is_called(callback);
        assert!(!self.asked_to_end, "{callback} after somebody closed it");
        assert!(!self.eof, "{callback} after the end of the stream");
        assert!(!self.paused || self.resumed, "{callback} while paused");
        assert!(!self.held, "{callback} while reading is held");
    }

    /// The next bytes that the peer sends.
    pub(crate) fn is_sent(&mut self, length: usize) -> Vec<u8> {
        let from = self.heard + self.unheard.len();
        let bytes: Vec<u8> = (from..from + length).map(|at| (at % 251) as u8).collect();
        // A stream brings nothing after its end, and a datagram may come at any time.
        if !self.datagrams && !self.peer_ended {
            self.unheard.extend(&bytes);
        }
        bytes
    }

    /// The next call on the descriptor fails: a stream is broken, or one datagram is gone.
    pub(crate) const fn is_failed(&mut self) {
        self.peer_ended = true;
        self.drops |= self.datagrams;
    }

    /// The protocol heard this: what was sent, in order.
    pub(crate) fn hears(&mut self, data: &[u8]) {
        self.heard += data.len();
        if self.datagrams {
            return;
        }
        assert!(!data.is_empty(), "a stream brought nothing");
        for byte in data {
            assert_eq!(
                self.unheard.pop_front(),
                Some(*byte),
                "heard what was not sent"
            );
        }
    }

    /// The protocol gave this answer.
    pub(crate) fn says(&mut self, verdict: Result<Action, Reason>) {
        match verdict {
            Ok(Action::Close | Action::Abort) | Err(_) => self.ending = true,
            Ok(Action::Pause) => self.paused = true,
            Ok(Action::ReadPending | Action::WritePending) => self.paused = false,
            Ok(Action::Continue) => {}
        }
    }

    /// A message of so many bytes was taken to be pushed.
    pub(crate) fn was_pushed(&mut self, length: usize) {
        self.pushed.push_back(length);
    }

    /// It wants to be told at that time.
    pub(crate) fn has_timeout(&mut self, at: Option<u64>) {
        self.timeouts += 1;
        let number = self.timeouts;
        self.due = at.map(|at| Due { at, number });
    }

    /// Whether it is there and nobody wants it to end.
    pub(crate) const fn is_open(&self) -> bool {
        self.connected && self.lost.is_none() && !self.ending && !self.asked_to_end
    }

    /// The peer saw this: the protocol's own bytes in order, and between them whole messages.
    pub(crate) fn peer_saw(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match *byte {
                BEGIN => {
                    assert_eq!(self.partial, 0, "a message within a message");
                    self.partial = 1;
                }
                MIDDLE => {
                    assert_ne!(self.partial, 0, "a message without its beginning");
                    self.partial += 1;
                }
                END => {
                    let length = self.partial + 1;
                    self.partial = 0;
                    self.take_message(length);
                }
                own => {
                    assert_eq!(self.partial, 0, "the protocol's byte within a message");
                    assert_eq!(usize::from(own), self.seen % PERIOD, "another byte came");
                    self.seen += 1;
                }
            }
        }
    }

    fn take_message(&mut self, length: usize) {
        while let Some(next) = self.pushed.pop_front() {
            if next == length {
                return;
            }
            assert!(self.drops, "a message of {next} bytes was left out");
        }
        panic!("a message of {length} bytes that nobody pushed");
    }

    /// Everything that there was to do is done.
    pub(crate) fn is_quiet(&mut self, open: bool) {
        self.paused &= !self.resumed;
        self.resumed = false;
        assert_eq!(
            self.seen, self.written,
            "bytes that the kernel took are gone"
        );
        assert!(self.messages_heard <= self.messages_sent);
        if open {
            assert_eq!(self.messages_heard, self.messages_sent, "a message is gone");
        }
        if self.refused {
            assert!(self.lost.is_none(), "lost without having been there");
        }
    }

    /// The same, and the peer takes whatever comes.
    pub(crate) fn has_sent_all(&self) {
        if self.paused {
            return;
        }
        assert_eq!(self.partial, 0, "a message stays cut off");
        if !self.drops {
            assert_eq!(self.pushed.len(), 0, "a pushed message waits for nothing");
        }
    }
}
