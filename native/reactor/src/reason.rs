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
    /// The context stopped.
    Stopped,
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => out.write_str("closed"),
            Self::Aborted => out.write_str("aborted"),
            Self::Eof => out.write_str("eof"),
            Self::PeerGone => out.write_str("peer_gone"),
            Self::Failed(Errno::ECONNRESET | Errno::EPIPE) => out.write_str("reset"),
            Self::Failed(errno) => write!(out, "failed: {errno}"),
            Self::Exception => out.write_str("exception"),
            Self::DescriptorGone => out.write_str("descriptor_gone"),
            Self::Stopped => out.write_str("stopped"),
        }
    }
}
