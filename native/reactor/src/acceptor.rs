//! A listening socket: where connections come from.
//!
//! What accept(2) and its relatives do on Linux, and what this file makes of it:
//!
//! - An error that already waited on the new connection, like ECONNABORTED, is handed out by
//!   accept(2). It speaks of that one connection, which is gone: the next one may be fine.
//! - Without a free descriptor accept(2) fails before it looks into the backlog. What
//!   waits there goes on waiting, so trying again at once is a loop that never sleeps.
//! - TCP_NODELAY passes from the listening socket to those that it accepts, which saves a
//!   system call for each.
//! - shutdown(2) of a listening socket ends it for every duplicate: accept(2) then
//!   fails with EINVAL, and who waits in epoll is woken. The backlog is reset. But a Unix socket
//!   that does not block says EAGAIN then, while epoll goes on to report it: so duplicates
//!   share a flag as well.
//! - A socket in that state keeps its port, but lets another one with SO_REUSEADDR have
//!   it too: so the port can be opened again while duplicates are still open.
//! - The file of a Unix socket outlives the socket. connect(2) tells whether anybody
//!   listens behind it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::SocketAddr as UnixSocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mio::net::{TcpListener, UnixListener};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage,
    UnixAddr, sockopt,
};

use crate::address::Address;
use crate::descriptor::{Descriptor, Identity};
use crate::kind::{AdoptError, Kind};
use crate::service::{Admission, Service};

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A TCP address; with port 0 the kernel chooses one.
    Tcp(SocketAddr),
    /// The path of a Unix socket; on Linux, what begins with a NUL byte is an abstract name,
    /// which is no file.
    Unix(PathBuf),
}

/// How to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenOptions {
    /// Connections that may wait to be accepted; the kernel has a bound of its own.
    pub backlog: u32,
    /// Whether others may listen on the same port and share its connections (TCP only).
    pub reuseport: bool,
    /// Whether small messages are sent at once instead of being collected (TCP only).
    pub nodelay: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            backlog: 1024,
            reuseport: false,
            nodelay: true,
        }
    }
}

/// What came of trying to accept.
#[derive(Debug)]
pub enum Accepted {
    /// A connection, close-on-exec and non-blocking, and its peer if that has a name.
    Connection(OwnedFd, Option<Address>),
    /// Nobody is waiting.
    Empty,
    /// The process or the kernel is short of something: try again, but not at once.
    Exhausted(Errno),
    /// The socket was shut, or is broken for good.
    Failed(Errno),
}

/// What came of trying to take in a connection of a service.
#[derive(Debug)]
pub enum Admitted {
    /// A connection, and its place.
    Connection(Arc<Descriptor>, Admission),
    /// Nobody is waiting.
    Empty,
    /// The service has no place; somebody may be waiting.
    Full,
    /// The process or the kernel is short of something: try again, but not at once.
    Exhausted(Errno),
    /// The socket was shut, or is broken for good.
    Failed(Errno),
}

/// A listening socket, or a duplicate of one.
///
/// Duplicates share the backlog; [`shut`](Self::shut) ends all of them. The one that
/// [`open`](Self::open) made also owns the file of a Unix socket, and removes it when it
/// is dropped.
#[derive(Debug)]
pub struct Acceptor {
    socket: Socket,
    is_shut: Arc<AtomicBool>,
    /// Other processes accept from it too.
    is_shared: bool,
    /// Held for what it does when it is dropped.
    _file: Option<SocketFile>,
}

/// A listening socket. Somebody may close its number behind our back, and then that can be
/// anybody's: it is closed only while it still names what was opened.
#[derive(Debug)]
struct Socket {
    /// `None` only while it is dropped.
    listener: Option<Listener>,
    identity: Identity,
}

impl Socket {
    fn of(listener: Listener) -> io::Result<Self> {
        let identity = Identity::of_fd(&listener)?;
        Ok(Self {
            listener: Some(listener),
            identity,
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let Some(listener) = self.listener.take() else {
            return;
        };
        if !self.identity.is_of(&listener) {
            let _ = match listener {
                Listener::Tcp(listener) => listener.into_raw_fd(),
                Listener::Unix(listener) => listener.into_raw_fd(),
            };
        }
    }
}

/// mio's listeners accept with accept4(2), and are nothing more than a descriptor.
#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    /// Listens. SO_REUSEADDR is always set, so that connections of an earlier listener do
    /// not keep the port. A Unix socket's file that nobody listens behind is replaced.
    ///
    /// # Errors
    /// The address is in use or not ours, the path cannot be made, or the process has no
    /// descriptor left.
    pub fn open(endpoint: &Endpoint, options: &ListenOptions) -> io::Result<Self> {
        match endpoint {
            Endpoint::Tcp(address) => Self::open_tcp(*address, options),
            Endpoint::Unix(path) => Self::open_unix(path, options),
        }
    }

    fn open_tcp(address: SocketAddr, options: &ListenOptions) -> io::Result<Self> {
        let address = SockaddrStorage::from(address);
        let socket = stream_socket(address.family().unwrap_or(AddressFamily::Inet))?;
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        if options.reuseport {
            socket::setsockopt(&socket, sockopt::ReusePort, &true)?;
        }
        socket::setsockopt(&socket, sockopt::TcpNoDelay, &options.nodelay)?;
        socket::bind(socket.as_raw_fd(), &address)?;
        listen(&socket, options.backlog)?;
        Ok(Self {
            socket: Socket::of(Listener::Tcp(socket.into()))?,
            is_shut: Arc::default(),
            is_shared: false,
            _file: None,
        })
    }

    fn open_unix(path: &Path, options: &ListenOptions) -> io::Result<Self> {
        let socket = stream_socket(AddressFamily::Unix)?;
        let file = match abstract_address(path) {
            Some(address) => {
                socket::bind(socket.as_raw_fd(), &address?)?;
                None
            }
            None => Some(bind_to_file(&socket, path)?),
        };
        listen(&socket, options.backlog)?;
        Ok(Self {
            socket: Socket::of(Listener::Unix(socket.into()))?,
            is_shut: Arc::default(),
            is_shared: false,
            _file: file,
        })
    }

    /// Accepts from a listening socket that came from elsewhere, and from which other processes may
    /// accept too: [`shut`](Self::shut) ends it here, and not for them.
    ///
    /// # Errors
    /// It does not listen, or for another kind of connection.
    pub fn inherit(socket: OwnedFd) -> io::Result<Self> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
        if !socket::getsockopt(&socket, sockopt::AcceptConn)? {
            return Err(invalid("the socket does not listen"));
        }
        set_nonblocking(&socket)?;
        let storage = socket::getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
        let listener = match storage.family() {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => Listener::Tcp(socket.into()),
            Some(AddressFamily::Unix) => Listener::Unix(socket.into()),
            _ => return Err(invalid("the socket is neither TCP nor Unix")),
        };
        Ok(Self {
            socket: Socket::of(listener)?,
            is_shut: Arc::default(),
            is_shared: true,
            _file: None,
        })
    }

    fn listener(&self) -> &Listener {
        self.socket
            .listener
            .as_ref()
            .expect("only drop takes it out")
    }

    /// Another hold on the same socket.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn duplicate(&self) -> io::Result<Self> {
        let socket = self.as_fd().try_clone_to_owned()?;
        Ok(Self {
            socket: Socket::of(match self.listener() {
                Listener::Tcp(_) => Listener::Tcp(socket.into()),
                Listener::Unix(_) => Listener::Unix(socket.into()),
            })?,
            is_shut: Arc::clone(&self.is_shut),
            is_shared: self.is_shared,
            _file: None,
        })
    }

    /// Takes the next connection. Never waits.
    #[must_use]
    pub fn accept(&self) -> Accepted {
        if self.is_shut() {
            return Accepted::Failed(Errno::EINVAL);
        }
        let mut errno = Errno::UnknownErrno;
        for _ in 0..MAX_PASSING_ERRORS {
            let error = match self.listener().accept() {
                Ok((connection, peer)) => return Accepted::Connection(connection, peer),
                Err(error) => error,
            };
            // Without an errno: the peer has an address that nobody can read.
            errno = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::ECONNABORTED as i32));
            match errno {
                Errno::EAGAIN => return Accepted::Empty,
                Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                    return Accepted::Exhausted(errno);
                }
                passing if is_passing(passing) => {}
                broken => return Accepted::Failed(broken),
            }
        }
        Accepted::Exhausted(errno)
    }

    /// Takes in the next connection of `service`. Never waits.
    ///
    /// Without a limit there is a place for whoever was accepted. Else it is taken before, but by
    /// nobody while no client waits.
    #[must_use]
    pub fn admit(&self, service: &Arc<Service>) -> Admitted {
        if service.max_connections() == u64::MAX {
            return self.accept_at(|| service.admit());
        }
        if !self.is_ready() {
            return Admitted::Empty;
        }
        match service.admit() {
            Some(admission) => self.accept_at(|| Some(admission)),
            None => Admitted::Full,
        }
    }

    fn accept_at(&self, place: impl FnOnce() -> Option<Admission>) -> Admitted {
        let (fd, peer) = match self.accept() {
            Accepted::Connection(fd, peer) => (fd, peer),
            Accepted::Empty => return Admitted::Empty,
            Accepted::Exhausted(errno) => return Admitted::Exhausted(errno),
            Accepted::Failed(errno) => return Admitted::Failed(errno),
        };
        match (Descriptor::accepted(fd, self.kind(), peer), place()) {
            (Ok(descriptor), Some(admission)) => Admitted::Connection(descriptor, admission),
            // A limit was set this moment; the client is turned away.
            (Ok(_), None) => Admitted::Full,
            (Err(AdoptError::System(errno)), _) => Admitted::Exhausted(errno),
            // The kernel does not know what it has just made.
            (Err(_), _) => Admitted::Failed(Errno::EBADF),
        }
    }

    /// Whether there is something to learn from [`accept`](Self::accept): somebody waits, or
    /// the socket is shut. Unlike that call it needs no free descriptor.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let mut asked = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        // After a failure accept(2) will tell more.
        poll(&mut asked, PollTimeout::ZERO) != Ok(0)
    }

    /// Stops listening, here and on every duplicate. What waits in the backlog is reset.
    pub fn shut(&self) {
        self.is_shut.store(true, Ordering::Release);
        if self.is_shared {
            return;
        }
        // The only error is ENOTCONN of a socket that was shut before.
        let _ = socket::shutdown(self.as_fd().as_raw_fd(), Shutdown::Both);
    }

    /// Whether [`shut`](Self::shut) was called, here or on a duplicate.
    /// Whether other processes accept what waits here.
    pub(crate) const fn is_shared(&self) -> bool {
        self.is_shared
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::Acquire)
    }

    /// The address that it listens on, with the port that the kernel chose.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn address(&self) -> io::Result<Address> {
        let storage = socket::getsockname::<SockaddrStorage>(self.as_fd().as_raw_fd())?;
        Address::from_storage(&storage).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// What it accepts.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.listener() {
            Listener::Tcp(_) => Kind::Tcp,
            Listener::Unix(_) => Kind::UnixStream,
        }
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener().as_fd()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Listener {
    fn accept(&self) -> io::Result<(OwnedFd, Option<Address>)> {
        match self {
            Self::Tcp(listener) => {
                let (connection, peer) = listener.accept()?;
                Ok((connection.into(), Some(Address::Inet(peer))))
            }
            Self::Unix(listener) => {
                let (connection, peer) = listener.accept()?;
                Ok((connection.into(), unix_address(&peer)))
            }
        }
    }
}

/// Errors of single connections that are taken in a row before it looks as if the socket
/// itself failed that way, as under a security policy that forbids accept(2).
const MAX_PASSING_ERRORS: usize = 1000;

/// Errors that speak of the connection that was to be accepted, as accept(2) lists them.
const fn is_passing(errno: Errno) -> bool {
    #[cfg(target_os = "linux")]
    if matches!(errno, Errno::ENONET) {
        return true;
    }
    matches!(
        errno,
        Errno::EINTR
            | Errno::ECONNABORTED
            | Errno::EPERM
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::EOPNOTSUPP
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ETIMEDOUT
    )
}

fn set_nonblocking(socket: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

fn stream_socket(family: AddressFamily) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(family, SockType::Stream, flags, None)
}

fn listen(socket: &OwnedFd, backlog: u32) -> nix::Result<()> {
    let wanted = i32::try_from(backlog).unwrap_or(i32::MAX);
    // Beyond what nix takes: as much as the kernel allows.
    #[cfg(any(target_os = "linux", target_os = "freebsd"))]
    let most = Backlog::MAXALLOWABLE;
    #[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
    let most = Backlog::MAXCONN;
    socket::listen(socket, Backlog::new(wanted).unwrap_or(most))
}

/// Binds to a path, in place of a socket that nobody listens behind.
fn bind_to_file(socket: &OwnedFd, path: &Path) -> io::Result<SocketFile> {
    let address = UnixAddr::new(path)?;
    match socket::bind(socket.as_raw_fd(), &address) {
        Err(Errno::EADDRINUSE) if is_abandoned(path, &address)? => {
            fs::remove_file(path)?;
            socket::bind(socket.as_raw_fd(), &address)?;
        }
        other => other?,
    }
    SocketFile::of(path)
}

/// The address of an abstract name, if that is what it is.
#[cfg(target_os = "linux")]
fn abstract_address(path: &Path) -> Option<nix::Result<UnixAddr>> {
    let name = path.as_os_str().as_bytes().strip_prefix(&[0])?;
    Some(UnixAddr::new_abstract(name))
}

/// There are none elsewhere.
#[cfg(not(target_os = "linux"))]
fn abstract_address(_path: &Path) -> Option<nix::Result<UnixAddr>> {
    None
}

fn unix_address(peer: &UnixSocketAddr) -> Option<Address> {
    if let Some(path) = peer.as_pathname() {
        return Some(Address::Unix(path.to_path_buf()));
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStringExt;
        if let Some(name) = peer.as_abstract_name() {
            let bytes = std::iter::once(0).chain(name.iter().copied()).collect();
            return Some(Address::Unix(std::ffi::OsString::from_vec(bytes).into()));
        }
    }
    None
}

/// Whether a path is that of a socket that nobody listens behind. A file of another kind
/// refuses connections too, and is left alone.
fn is_abandoned(path: &Path, address: &UnixAddr) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let probe = stream_socket(AddressFamily::Unix)?;
    Ok(socket::connect(probe.as_raw_fd(), address) == Err(Errno::ECONNREFUSED))
}

/// The file of a Unix socket; removed when dropped, unless it is another one by then.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode);
        if ours {
            // What cannot be removed is replaced by whoever listens there next.
            let _ = fs::remove_file(&self.path);
        }
    }
}
