//! What is sent: bytes that depend on the connection and on the number of the message.
//!
//! A message is an eight-byte stamp (connection, sequence) followed by a window of one random
//! pattern, the window's place again depending on both. A byte lost, doubled, swapped, or sent to
//! the wrong connection is seen, and checking costs one comparison of memory.

use std::fmt;

const STAMP_BYTES: usize = 8;

/// Places a window may begin at. Prime, so that neighbouring messages do not share a window;
/// small enough for pattern and window to stay in the second-level cache.
const PLACES: usize = 65_521;

pub(crate) struct Pattern {
    bytes: Vec<u8>,
    size: usize,
}

/// The first byte that differs from what was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    connection: u32,
    sequence: u32,
    offset: usize,
}

impl std::error::Error for Mismatch {}

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch {
            connection,
            sequence,
            offset,
        } = self;
        write!(
            out,
            "wrong byte at offset {offset} of message {sequence} on connection {connection}"
        )
    }
}

impl Pattern {
    pub(crate) fn new(size: usize) -> Pattern {
        let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
        let bytes = (0..PLACES + size)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        Pattern { bytes, size }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Writes the message into `out`, which is as long as a message.
    pub(crate) fn fill(&self, connection: u32, sequence: u32, out: &mut [u8]) {
        out.copy_from_slice(self.window(connection, sequence));
        let stamped = STAMP_BYTES.min(self.size);
        out[..stamped].copy_from_slice(&stamp(connection, sequence)[..stamped]);
    }

    /// Compares `got`, which arrived `offset` bytes into the message, with what was sent there.
    pub(crate) fn check(
        &self,
        connection: u32,
        sequence: u32,
        offset: usize,
        got: &[u8],
    ) -> Result<(), Mismatch> {
        let stamp = stamp(connection, sequence);
        let window = self.window(connection, sequence);
        let stamped = STAMP_BYTES.min(self.size).saturating_sub(offset);
        let (head, tail) = got.split_at(stamped.min(got.len()));
        let tail_at = offset + head.len();
        let same = offset + got.len() <= self.size
            && head == &stamp[offset.min(STAMP_BYTES)..][..head.len()]
            && tail == &window[tail_at..tail_at + tail.len()];
        if same {
            return Ok(());
        }
        let expected = |at: usize| {
            if at < STAMP_BYTES {
                stamp.get(at)
            } else {
                window.get(at)
            }
        };
        let differs = |&(index, byte): &(usize, &u8)| {
            offset + index >= self.size || expected(offset + index) != Some(byte)
        };
        let first = got.iter().enumerate().find(differs);
        Err(Mismatch {
            connection,
            sequence,
            offset: offset + first.map_or(0, |(index, _)| index),
        })
    }

    fn window(&self, connection: u32, sequence: u32) -> &[u8] {
        let mixed = u64::from(connection).wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::from(sequence).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        let place = ((mixed >> 20) % PLACES as u64) as usize;
        &self.bytes[place..place + self.size]
    }
}

/// The most that a `Stream` gives at once.
pub(crate) const MAX_PIECE: usize = 1 << 16;

/// An endless stream of known bytes, different on each connection: what was sent at any place can be
/// told without keeping it.
pub(crate) struct Stream {
    /// One period, and what follows it.
    bytes: Vec<u8>,
    begin: u64,
}

impl Stream {
    pub(crate) fn new(connection: u32) -> Stream {
        let period = Pattern::new(0).bytes;
        let bytes = period.iter().copied().cycle();
        Stream {
            bytes: bytes.take(PLACES + MAX_PIECE).collect(),
            begin: u64::from(connection) * 7919,
        }
    }

    /// The bytes from `offset` on, at most `len` of them and `MAX_PIECE`.
    pub(crate) fn piece(&self, offset: u64, len: usize) -> &[u8] {
        let place = ((self.begin + offset) % PLACES as u64) as usize;
        &self.bytes[place..place + len.min(MAX_PIECE)]
    }
}

fn stamp(connection: u32, sequence: u32) -> [u8; STAMP_BYTES] {
    ((u64::from(connection) << 32) | u64::from(sequence)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(pattern: &Pattern, connection: u32, sequence: u32) -> Vec<u8> {
        let mut out = vec![0; pattern.size()];
        pattern.fill(connection, sequence, &mut out);
        out
    }

    #[test]
    fn a_message_passes_in_pieces_of_every_length() {
        for size in [1, 3, 8, 9, 64, 1000] {
            let pattern = Pattern::new(size);
            let sent = message(&pattern, 7, 9);
            for piece in 1..=size {
                let mut offset = 0;
                for part in sent.chunks(piece) {
                    assert_eq!(pattern.check(7, 9, offset, part), Ok(()));
                    offset += part.len();
                }
            }
        }
    }

    #[test]
    fn every_single_wrong_byte_is_found_at_its_place() {
        let pattern = Pattern::new(100);
        for offset in 0..100 {
            let mut got = message(&pattern, 1, 2);
            got[offset] ^= 1;
            let wrong = Mismatch {
                connection: 1,
                sequence: 2,
                offset,
            };
            assert_eq!(pattern.check(1, 2, 0, &got), Err(wrong));
        }
    }

    #[test]
    fn a_byte_too_many_is_found() {
        for size in [4, 64] {
            let pattern = Pattern::new(size);
            let mut got = message(&pattern, 1, 2);
            got.push(0);
            let found = pattern.check(1, 2, 0, &got).map_err(|wrong| wrong.offset);
            assert_eq!(found, Err(size));
        }
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let stream = Stream::new(3);
        for offset in [0, 1, 40_000, 65_520, 65_521, 1 << 40] {
            let whole = stream.piece(offset, usize::MAX);
            assert_eq!(whole.len(), MAX_PIECE);
            for cut in [1, 100, 30_000, MAX_PIECE - 1] {
                let rest = stream.piece(offset + cut as u64, MAX_PIECE - cut);
                assert!(rest == &whole[cut..]);
            }
        }
        assert!(Stream::new(4).piece(0, 100) != stream.piece(0, 100));
    }

    #[test]
    fn another_connections_or_the_last_message_is_not_accepted() {
        let pattern = Pattern::new(64);
        assert!(pattern.check(1, 2, 0, &message(&pattern, 2, 2)).is_err());
        assert!(pattern.check(1, 2, 0, &message(&pattern, 1, 1)).is_err());
    }
}
