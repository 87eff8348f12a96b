//! What a descriptor is, and whether it can be served.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{self, SockType, SockaddrLike, SockaddrStorage, sockopt};
use nix::sys::stat::{FileStat, SFlag};

/// What a served descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A TCP connection (or another stream over IP).
    Tcp,
    /// A UDP socket.
    Udp,
    /// A Unix stream socket.
    UnixStream,
    /// A Unix datagram socket.
    UnixDatagram,
    /// A pipe or a FIFO, either end.
    Pipe,
    /// A terminal.
    Tty,
}

impl Kind {
    /// The name that users see as `type` in `client_info`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UnixStream => "unix",
            Self::UnixDatagram => "unix_dgram",
            Self::Pipe => "pipe",
            Self::Tty => "tty",
        }
    }

    /// Whether messages keep their bounds.
    #[must_use]
    pub const fn is_datagram(self) -> bool {
        matches!(self, Self::Udp | Self::UnixDatagram)
    }

    pub(crate) const fn is_socket(self) -> bool {
        !matches!(self, Self::Pipe | Self::Tty)
    }
}

/// Why a descriptor was not adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdoptError {
    /// The number names no open descriptor.
    BadDescriptor,
    /// It cannot be polled, or has no stream or datagrams to serve: its kind.
    Unsupported(&'static str),
    /// A system call failed.
    System(Errno),
    /// A connection has it already.
    AlreadyServed,
}

impl fmt::Display for AdoptError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadDescriptor => out.write_str("not an open descriptor"),
            Self::Unsupported(kind) => write!(out, "cannot serve a descriptor of kind {kind}"),
            Self::System(errno) => write!(out, "{errno}"),
            Self::AlreadyServed => out.write_str("the descriptor is served already"),
        }
    }
}

impl std::error::Error for AdoptError {}

impl From<Errno> for AdoptError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EBADF => Self::BadDescriptor,
            other => Self::System(other),
        }
    }
}

/// What a descriptor is that stat(2) describes so.
///
/// # Errors
/// It cannot be served.
pub(crate) fn kind_of(fd: BorrowedFd<'_>, stat: &FileStat) -> Result<Kind, AdoptError> {
    let format = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
    if format == SFlag::S_IFSOCK {
        socket_kind(fd)
    } else if format == SFlag::S_IFIFO {
        Ok(Kind::Pipe)
    } else if format == SFlag::S_IFCHR {
        match nix::unistd::isatty(fd) {
            Ok(true) => Ok(Kind::Tty),
            _ => Err(AdoptError::Unsupported("character_device")),
        }
    } else if format == SFlag::S_IFREG {
        Err(AdoptError::Unsupported("regular"))
    } else if format == SFlag::S_IFDIR {
        Err(AdoptError::Unsupported("directory"))
    } else if format == SFlag::S_IFBLK {
        Err(AdoptError::Unsupported("block_device"))
    } else {
        Err(AdoptError::Unsupported(anonymous_kind(fd)))
    }
}

/// Descriptors without a file type: epoll, eventfd, timerfd, inotify and the like.
fn anonymous_kind(fd: BorrowedFd<'_>) -> &'static str {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    match link.as_deref().ok().and_then(|path| path.to_str()) {
        Some("anon_inode:[eventpoll]") => "epoll",
        _ => "anonymous",
    }
}

fn socket_kind(fd: BorrowedFd<'_>) -> Result<Kind, AdoptError> {
    let socket_type = socket::getsockopt(&fd, sockopt::SockType)?;
    let family = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .ok()
        .and_then(|storage| storage.family());
    let unix = family == Some(socket::AddressFamily::Unix);
    let inet = matches!(
        family,
        Some(socket::AddressFamily::Inet | socket::AddressFamily::Inet6)
    );
    if socket_type == SockType::Stream
        && matches!(socket::getsockopt(&fd, sockopt::AcceptConn), Ok(true))
    {
        return Err(AdoptError::Unsupported("listener"));
    }
    match socket_type {
        SockType::Stream if inet => Ok(Kind::Tcp),
        SockType::Stream if unix => Ok(Kind::UnixStream),
        SockType::Datagram if inet => Ok(Kind::Udp),
        SockType::Datagram if unix => Ok(Kind::UnixDatagram),
        SockType::SeqPacket => Err(AdoptError::Unsupported("seqpacket")),
        _ => Err(AdoptError::Unsupported("socket")),
    }
}
