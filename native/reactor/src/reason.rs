//! Why a connection ended.

use std::fmt;

use nix::errno::Errno;

/// Why a connection ended. Its text is what a protocol sees as `close_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The protocol asked for it.
    Closed,
    /// The protocol wanted it at once.
    Aborted,
    /// The peer ended its stream and the protocol left it at that.
    Eof,
    /// The peer went away without a word.
    PeerGone,
    /// A system call failed for good.
    Failed(Errno),
    /// A callback failed; the report has the details.
    Exception,
    /// The descriptor was closed by somebody else.
    DescriptorGone,
    /// The context or the listener stopped.
    Stopped,
    /// The listener is drained, and the connection had nothing more to do.
    Drained,
    /// The time that the protocol had set was over, and it left it at that.
    Timeout,
    /// No byte came or went for too long.
    IdleTimeout,
    /// The peer took too long to say what it wants.
    HandshakeTimeout,
    /// The peer took nothing for too long.
    WriteTimeout,
    /// The peer took pushed messages too slowly.
    SlowConsumer,
}

impl Reason {
    /// The names of all kinds of reason; the position of a reason is its
    /// [`index`](Self::index).
    pub(crate) const NAMES: [&'static str; 15] = [
        "closed",
        "aborted",
        "eof",
        "peer_gone",
        "reset",
        "failed",
        "exception",
        "descriptor_gone",
        "stopped",
        "drained",
        "timeout",
        "idle_timeout",
        "handshake_timeout",
        "write_timeout",
        "slow_consumer",
    ];

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Closed => 0,
            Self::Aborted => 1,
            Self::Eof => 2,
            Self::PeerGone => 3,
            Self::Failed(Errno::ECONNRESET | Errno::EPIPE) => 4,
            Self::Failed(_) => 5,
            Self::Exception => 6,
            Self::DescriptorGone => 7,
            Self::Stopped => 8,
            Self::Drained => 9,
            Self::Timeout => 10,
            Self::IdleTimeout => 11,
            Self::HandshakeTimeout => 12,
            Self::WriteTimeout => 13,
            Self::SlowConsumer => 14,
        }
    }

    /// Its kind, in a word; a system error without its text.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    /// Whether it is we who end a connection that works.
    pub(crate) const fn is_ours(self) -> bool {
        matches!(self, Self::Closed | Self::Stopped | Self::Drained) || self.is_timeout()
    }

    /// Whether a clock ended the connection.
    pub(crate) const fn is_timeout(self) -> bool {
        matches!(
            self,
            Self::Timeout | Self::IdleTimeout | Self::HandshakeTimeout | Self::WriteTimeout
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())?;
        match self {
            Self::Failed(Errno::ECONNRESET | Errno::EPIPE) => Ok(()),
            Self::Failed(errno) => write!(out, ": {errno}"),
            _ => Ok(()),
        }
    }
}
