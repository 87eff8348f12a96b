//! One descriptor that the reactor owns: what it is, how it is read and written,
//! and the proof that what is closed in the end is what was adopted.
//!
//! A descriptor number is a weak name. Code that we serve can close it behind our
//! back, and the kernel then gives the number to the next socket. Two rules keep
//! such an accident from touching anybody else:
//!
//! - A new descriptor with the number of a living one proves that the old one is
//!   gone: the registry below tells its engine, and it is never read, written or
//!   closed again. Both what is handed in and its duplicate are compared.
//! - Before `close(2)` the descriptor's device and inode are compared with those
//!   seen when it was adopted.
//!
//! Behind a simulated descriptor there is a [`Wire`] instead of the kernel. Nobody else can
//! have its number, so neither rule applies to it.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering, fence};
use std::sync::{Arc, LazyLock, OnceLock, Weak};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, MsgFlags, SockaddrStorage, sockopt};
use nix::sys::stat::{FileStat, fstat};
use parking_lot::Mutex;

use crate::address::Address;
use crate::inbox::Key;
use crate::kind::{AdoptError, Kind, kind_of};
use crate::link::{Link, Owner};
use crate::poller::{Poller, Readiness};
use crate::wire::{Number, Wire};

/// What one read brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// This many bytes; `drained` if the kernel surely has no more.
    Data {
        /// Bytes at the start of the buffer.
        length: usize,
        /// Whether the next read would block, as far as that can be known.
        drained: bool,
    },
    /// One datagram, which may be empty.
    Datagram {
        /// Bytes at the start of the buffer.
        length: usize,
    },
    /// The peer ended its stream.
    Eof,
    /// Nothing is there yet.
    WouldBlock,
}

/// A descriptor owned by the reactor.
pub struct Descriptor {
    medium: Medium,
    number: RawFd,
    kind: Kind,
    /// False for the writing end of a pipe.
    reads: bool,
    /// A stream socket of the kernel, as nearly all are: they are asked for first.
    is_stream: bool,
    identity: Identity,
    /// Nobody else has a duplicate: what watches it forgets it when it is closed.
    sole: bool,
    /// Odd from a write that the kernel refused until it says that it takes more; every
    /// such report brings a new number.
    room: AtomicU32,
    /// Somebody else closed the number: it is not ours any more.
    gone: AtomicBool,
    /// Ends the watch that a demultiplexer keeps on the number.
    watch: Mutex<Option<EndWatch>>,
    /// The errno of the first failure for good, or 0.
    fault: AtomicI32,
    /// Who sent the last datagram, and so receives the answer.
    /// In a box: streams, which are many, have none.
    sender: Mutex<Option<Box<SockaddrStorage>>>,
    /// The other end of a stream, once it was asked for: after a reset the kernel knows it no
    /// more, and then it is wanted most.
    far_end: OnceLock<Address>,
    owner: OnceLock<Owner>,
    link: Arc<Link>,
}

/// What is behind a descriptor.
enum Medium {
    /// The kernel. `None` only while the descriptor is dropped.
    Kernel(Option<OwnedFd>),
    /// A simulation.
    Simulated(Number, Arc<Wire>),
}

impl Medium {
    const fn fd(&self) -> Option<&OwnedFd> {
        match self {
            Self::Kernel(fd) => fd.as_ref(),
            Self::Simulated(..) => None,
        }
    }
}

/// What a number names, as far as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    // The width of these fields differs between systems.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
    fn of(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
        }
    }

    pub(crate) fn of_fd(fd: &impl AsFd) -> nix::Result<Self> {
        fstat(fd).map(|stat| Self::of(&stat))
    }

    pub(crate) fn is_of(self, fd: &impl AsFd) -> bool {
        Self::of_fd(fd) == Ok(self)
    }
}

/// Ends a watch. Called on any thread, once at most.
type EndWatch = Box<dyn FnOnce() + Send>;

/// Descriptor numbers belong to the process, and so does this list of those in use.
static LIVE: LazyLock<Mutex<HashMap<RawFd, Weak<Descriptor>>>> = LazyLock::new(Mutex::default);

/// The same of sockets, by what they are: a duplicate has another number. Pipes and terminals that
/// were opened twice cannot be told from duplicates.
static SERVED: LazyLock<Mutex<HashMap<Identity, Weak<Descriptor>>>> = LazyLock::new(Mutex::default);

impl Descriptor {
    /// Duplicates `fd`, close-on-exec and non-blocking, into a descriptor of our own.
    ///
    /// # Errors
    /// `fd` is not open, is of a kind that cannot be served, is a socket that is served already
    /// under whatever number (two readers would each get a part of the stream), or the process has no
    /// descriptor left.
    pub fn adopt(fd: BorrowedFd<'_>) -> Result<Arc<Self>, AdoptError> {
        let stat = fstat(fd)?;
        let identity = Identity::of(&stat);
        let number = fd.as_raw_fd();
        if Self::is_served_as(number, identity) {
            return Err(AdoptError::AlreadyServed);
        }
        let kind = kind_of(fd, &stat)?;
        let reads = flags_of(&fd)? & OFlag::O_ACCMODE != OFlag::O_WRONLY;
        // Before there is a duplicate: it may get the number of one that is gone.
        if kind.is_socket() && Self::is_served(identity) {
            return Err(AdoptError::AlreadyServed);
        }
        let own = fd.try_clone_to_owned().map_err(|error| {
            AdoptError::from(Errno::from_raw(error.raw_os_error().unwrap_or(0)))
        })?;
        make_nonblocking(&own)?;
        let descriptor = Self::register(own, kind, reads, identity, false);
        if kind.is_socket() && !descriptor.enter() {
            return Err(AdoptError::AlreadyServed);
        }
        Ok(descriptor)
    }

    /// Takes a socket of a listener, which is ours already; close-on-exec and non-blocking.
    ///
    /// # Errors
    /// The kernel does not know the descriptor.
    pub fn accepted(
        fd: OwnedFd,
        kind: Kind,
        peer: Option<Address>,
    ) -> Result<Arc<Self>, AdoptError> {
        let identity = Identity::of(&fstat(&fd)?);
        let descriptor = Self::register(fd, kind, true, identity, true);
        // The kernel has just made it: what has its identity on the list is gone.
        descriptor.enter();
        if let Some(peer) = peer {
            // Nobody else knows the descriptor yet.
            let _ = descriptor.far_end.set(peer);
        }
        Ok(descriptor)
    }

    /// What is handed in may have the number of a living descriptor: either it is that one, or
    /// that is gone. An acceptor gets the lowest free number, so most often it is the first to
    /// show this.
    fn is_served_as(number: RawFd, identity: Identity) -> bool {
        let living = LIVE.lock().get(&number).and_then(Weak::upgrade);
        living.is_some_and(|living| {
            let same = living.identity == identity;
            if !same {
                living.disown();
            }
            same && !living.is_gone()
        })
    }

    /// The same of a duplicate, which has another number.
    fn is_served(identity: Identity) -> bool {
        let known = SERVED.lock().get(&identity).and_then(Weak::upgrade);
        known.is_some_and(|known| {
            let lives = known.is_still_ours();
            if !lives {
                known.disown();
            }
            lives
        })
    }

    /// Puts a new descriptor on the list of what is served; false if somebody was faster.
    fn enter(self: &Arc<Self>) -> bool {
        let mut known = SERVED.lock();
        let other = known.get(&self.identity).and_then(Weak::upgrade);
        let free = other.as_ref().is_none_or(|other| other.is_gone());
        if free {
            known.insert(self.identity, Arc::downgrade(self));
        }
        // Before `other`, which takes the lock again should it be the last to go.
        drop(known);
        free
    }

    /// A descriptor of a simulated kernel.
    pub(crate) fn simulated(wire: Arc<Wire>, kind: Kind, peer: Option<Address>) -> Arc<Self> {
        let medium = Medium::Simulated(Number::take(), wire);
        let descriptor = Self::new(medium, kind, true, Identity::default(), true);
        if let Some(peer) = peer {
            // Nobody else knows the descriptor yet.
            let _ = descriptor.far_end.set(peer);
        }
        descriptor
    }

    fn register(fd: OwnedFd, kind: Kind, reads: bool, identity: Identity, sole: bool) -> Arc<Self> {
        let number = fd.as_raw_fd();
        let descriptor = Self::new(Medium::Kernel(Some(fd)), kind, reads, identity, sole);
        let previous = LIVE.lock().insert(number, Arc::downgrade(&descriptor));
        if let Some(previous) = previous.and_then(|weak| weak.upgrade()) {
            previous.disown();
        }
        descriptor
    }

    fn new(medium: Medium, kind: Kind, reads: bool, identity: Identity, sole: bool) -> Arc<Self> {
        let (number, simulated) = match &medium {
            Medium::Kernel(fd) => (fd.as_ref().map_or(-1, AsRawFd::as_raw_fd), false),
            Medium::Simulated(number, _) => (number.get(), true),
        };
        Arc::new_cyclic(|weak| Self {
            medium,
            number,
            kind,
            reads,
            is_stream: kind.is_socket() && !kind.is_datagram() && !simulated,
            identity,
            sole,
            room: AtomicU32::new(0),
            gone: AtomicBool::new(false),
            watch: Mutex::new(None),
            fault: AtomicI32::new(0),
            sender: Mutex::new(None),
            far_end: OnceLock::new(),
            owner: OnceLock::new(),
            link: Link::new(weak.clone()),
        })
    }

    /// Somebody else closed this number: forget it and tell the engine.
    fn disown(&self) {
        self.gone.store(true, Ordering::Release);
        // First of all: once the new descriptor is with its engine it may be watched, and the
        // end of the old watch would be that of the new one. And the old engine, once it
        // knows, finds a stranger's number and keeps its hands off.
        if let Some(end) = self.take_watch() {
            end();
        }
        // Against the one in `owned_by`: either we see the owner here, or its engine
        // sees that the descriptor is gone.
        fence(Ordering::SeqCst);
        if let Some(owner) = self.owner.get() {
            owner.descriptor_gone();
        }
    }

    /// Records that the number is watched by somebody who keeps it by its number. `end` is
    /// called as soon as the number proves to be another descriptor's.
    pub fn is_watched(&self, end: EndWatch) {
        *self.watch.lock() = Some(end);
    }

    /// Takes back what [`is_watched`](Self::is_watched) recorded. `None` if that was called,
    /// or is being called.
    #[must_use]
    pub fn take_watch(&self) -> Option<EndWatch> {
        self.watch.lock().take()
    }

    /// Records which connection this is, so that other threads can reach it.
    pub(crate) fn owned_by(&self, owner: Owner) {
        // Set once, when the engine takes the descriptor; a second owner cannot be.
        let _ = self.owner.set(owner);
        fence(Ordering::SeqCst);
    }

    /// The connection that this descriptor belongs to, once an engine has taken it.
    #[must_use]
    pub fn owner(&self) -> Option<&Owner> {
        self.owner.get()
    }

    /// By which it is known outside of its engine, also when it is over.
    #[must_use]
    pub const fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its number, for logs, for Python and for registration with a poller.
    #[must_use]
    pub const fn number(&self) -> RawFd {
        self.number
    }

    /// The descriptor of the kernel; a simulated one has none.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.medium.fd().map(AsFd::as_fd)
    }

    /// Has it watched for data and, if `write`, for room to write.
    pub(crate) fn watch(&self, poller: &Poller, key: Key, write: bool) -> io::Result<()> {
        match &self.medium {
            Medium::Kernel(Some(fd)) => poller.add(fd, key, write),
            Medium::Kernel(None) => Err(Errno::EBADF.into()),
            Medium::Simulated(_, wire) => {
                self.report(wire.watch(write));
                Ok(())
            }
        }
    }

    /// Has it watched for room to write as well.
    pub(crate) fn watch_room(&self, poller: &Poller, key: Key) -> io::Result<()> {
        match &self.medium {
            Medium::Kernel(Some(fd)) => poller.add_write(fd, key),
            Medium::Kernel(None) => Err(Errno::EBADF.into()),
            Medium::Simulated(..) => self.watch(poller, key, true),
        }
    }

    /// Has it watched no more.
    pub(crate) fn unwatch(&self, poller: &Poller) -> io::Result<()> {
        match &self.medium {
            Medium::Kernel(Some(fd)) => poller.remove(fd),
            Medium::Kernel(None) => Err(Errno::EBADF.into()),
            Medium::Simulated(_, wire) => {
                wire.unwatch();
                Ok(())
            }
        }
    }

    /// What a simulated kernel has to say.
    pub(crate) fn report(&self, readiness: Readiness) {
        if let Some(owner) = self.owner.get()
            && readiness != Readiness::default()
        {
            owner.is_ready(readiness);
        }
    }

    /// Sends small messages at once instead of collecting them (TCP only).
    ///
    /// # Errors
    /// The socket refuses the option.
    pub fn set_nodelay(&self) -> nix::Result<()> {
        match self.medium.fd() {
            Some(fd) if self.kind == Kind::Tcp => {
                match socket::setsockopt(fd, sockopt::TcpNoDelay, &true) {
                    // Not TCP after all (a stream over IP can be SCTP), or reset already.
                    Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(()),
                    other => other,
                }
            }
            _ => Ok(()),
        }
    }

    /// The address of the peer: of the last datagram's sender, or of the other end.
    #[must_use]
    pub fn peer(&self) -> Option<Address> {
        if !self.kind.is_socket() {
            return None;
        }
        if let Some(sender) = &*self.sender.lock() {
            return Address::from_storage(sender);
        }
        if let Some(address) = self.far_end.get() {
            return Some(address.clone());
        }
        if self.is_gone() || self.medium.fd().is_none() {
            return None;
        }
        let storage = socket::getpeername::<SockaddrStorage>(self.number()).ok()?;
        let address = Address::from_storage(&storage)?;
        if !self.kind.is_datagram() {
            // Two that ask at once got the same answer.
            let _ = self.far_end.set(address.clone());
        }
        Some(address)
    }

    /// The failure that ended this descriptor, if there was one.
    #[must_use]
    pub fn fault(&self) -> Option<Errno> {
        match self.fault.load(Ordering::Acquire) {
            0 => None,
            errno => Some(Errno::from_raw(errno)),
        }
    }

    /// Whether nobody but us ever had it. (A child that was forked has one, and then an entry
    /// may be left behind; what it reports is known to be stale.)
    pub(crate) const fn is_sole(&self) -> bool {
        self.sole
    }

    /// Whether somebody else closed the number.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether the kernel refused the last write.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.room.load(Ordering::Acquire) & 1 == 1
    }

    /// The kernel takes more.
    pub(crate) fn unblock(&self) {
        let room = self.room.load(Ordering::Acquire);
        self.room
            .store((room | 1).wrapping_add(1), Ordering::Release);
    }

    /// The kernel refused a write that began when `room` was the number. On another
    /// thread than the worker's the report of room can be faster than we are, and there
    /// will not be a second one.
    fn block(&self, room: u32) {
        let _ = self
            .room
            .compare_exchange(room, room | 1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Reads once into `buffer`.
    ///
    /// # Errors
    /// The descriptor is dead; the same errno is kept as its [`fault`](Self::fault).
    pub fn receive(&self, buffer: &mut [u8]) -> nix::Result<Received> {
        self.check()?;
        let result = if self.is_stream {
            self.receive_stream(buffer)
        } else {
            self.receive_other(buffer)
        };
        match result {
            Err(Errno::EAGAIN) => Ok(Received::WouldBlock),
            // The far end of a pseudo-terminal was closed: its way to say end of file.
            Err(Errno::EIO) if self.kind == Kind::Tty => Ok(Received::Eof),
            Err(errno) => Err(self.fail(errno)),
            ok => ok,
        }
    }

    /// epoll(7) promises that a stream is empty after a read that did not fill its buffer.
    /// Yet a Unix socket stops at ancillary data.
    fn receive_stream(&self, buffer: &mut [u8]) -> nix::Result<Received> {
        let size = buffer.len();
        let (length, whole) = retry(|| {
            if self.kind == Kind::Tcp {
                let length = socket::recv(self.number(), buffer, MsgFlags::MSG_DONTWAIT)?;
                return Ok((length, true));
            }
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let message = socket::recvmsg::<()>(self.number(), &mut parts, None, flags)?;
            let whole = !message.flags.contains(MsgFlags::MSG_CTRUNC);
            Ok((message.bytes, whole))
        })?;
        Ok(match length {
            0 => Received::Eof,
            length => Received::Data {
                length,
                drained: length < size && whole,
            },
        })
    }

    fn receive_other(&self, buffer: &mut [u8]) -> nix::Result<Received> {
        match &self.medium {
            Medium::Simulated(_, wire) => self.receive_simulated(wire, buffer),
            Medium::Kernel(_) if self.kind.is_datagram() => self.receive_datagram(buffer),
            Medium::Kernel(Some(fd)) if self.reads => receive_file(fd, buffer),
            // All that a writing end has to report is that nobody reads any more.
            Medium::Kernel(_) if self.peer_is_gone() => Err(Errno::EPIPE),
            Medium::Kernel(_) => Err(Errno::EAGAIN),
        }
    }

    /// A datagram socket outlives the errors of single datagrams: an ICMP answer to
    /// an earlier send shows up once, here, and the next call goes on.
    fn receive_datagram(&self, buffer: &mut [u8]) -> nix::Result<Received> {
        // The flag O_NONBLOCK is shared with the duplicate of whoever handed this over, and the
        // module `socket` of OTP takes it away when it closes that. nix's recvfrom(2) takes no
        // flags, so a look that never waits comes first.
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        retry(|| socket::recv(self.number(), &mut [0], peek).map_err(skip_passing))?;
        // Not recvmsg(2): nix would take what was on the stack for the name of a sender
        // that has none.
        let (length, sender) = retry(|| {
            socket::recvfrom::<SockaddrStorage>(self.number(), buffer).map_err(skip_passing)
        })?;
        self.sent_by(sender.filter(|storage| Address::from_storage(storage).is_some()));
        Ok(Received::Datagram { length })
    }

    fn receive_simulated(&self, wire: &Wire, buffer: &mut [u8]) -> nix::Result<Received> {
        if !self.kind.is_datagram() {
            return wire.receive(buffer).map(|(received, _)| received);
        }
        let (received, sender) = retry(|| wire.receive(buffer).map_err(skip_passing))?;
        if let Received::Datagram { .. } = received {
            self.sent_by(sender.map(SockaddrStorage::from));
        }
        Ok(received)
    }

    /// Keeps who sent the last datagram.
    fn sent_by(&self, sender: Option<SockaddrStorage>) {
        let mut kept = self.sender.lock();
        match (&mut *kept, sender) {
            (Some(kept), Some(sender)) => **kept = sender,
            (kept, sender) => *kept = sender.map(Box::new),
        }
    }

    /// Hands `bytes` to the kernel and returns how many it took: 0 when it takes none
    /// now. A datagram goes to the sender of the last one and is taken whole.
    ///
    /// # Errors
    /// The descriptor is dead; the same errno is kept as its [`fault`](Self::fault).
    /// A datagram that cannot be sent is an error that does not end the descriptor.
    pub fn send(&self, bytes: &[u8]) -> nix::Result<usize> {
        // The kernel has taken a part of a pushed message, and refused the rest.
        if self.owner.get().is_some_and(Owner::is_mid_message) {
            return self.check().map(|()| 0);
        }
        self.send_now(bytes)
    }

    /// The same, without waiting for the rest of a pushed message.
    pub(crate) fn send_now(&self, bytes: &[u8]) -> nix::Result<usize> {
        self.check()?;
        if bytes.is_empty() && !self.kind.is_datagram() {
            return Ok(0);
        }
        let room = self.room.load(Ordering::Acquire);
        let result = if self.is_stream {
            retry(|| socket::send(self.number(), bytes, SEND_FLAGS))
        } else if self.kind.is_datagram() {
            self.send_datagram(bytes)
        } else {
            retry(|| match &self.medium {
                Medium::Kernel(Some(fd)) => {
                    make_nonblocking(fd)?;
                    nix::unistd::write(fd, bytes)
                }
                Medium::Kernel(None) => Err(Errno::EBADF),
                Medium::Simulated(_, wire) => wire.send(bytes),
            })
        };
        match result {
            Ok(length) => {
                if length < bytes.len() {
                    self.block(room);
                }
                if let Some(owner) = self.owner.get() {
                    owner.count_sent(length as u64);
                }
                Ok(length)
            }
            Err(Errno::EAGAIN) => {
                self.block(room);
                Ok(0)
            }
            Err(errno) if self.kind.is_datagram() && errno != Errno::EBADF => Err(errno),
            Err(errno) => Err(self.fail(errno)),
        }
    }

    fn send_datagram(&self, bytes: &[u8]) -> nix::Result<usize> {
        let sender = self.sender.lock().as_deref().copied();
        let mut tries = 0;
        retry(|| {
            let result = match (&self.medium, &sender) {
                (Medium::Kernel(_), Some(to)) => {
                    socket::sendto(self.number(), bytes, to, SEND_FLAGS)
                }
                (Medium::Kernel(_), None) => socket::send(self.number(), bytes, SEND_FLAGS),
                (Medium::Simulated(_, wire), _) => wire.send(bytes),
            };
            match result {
                // The error of an earlier datagram; this one was not tried yet.
                Err(Errno::ECONNREFUSED) if tries == 0 => {
                    tries += 1;
                    Err(Errno::EINTR)
                }
                // The queue of a Unix socket that is not connected to us is full. Room
                // there is never announced, so it is the end of this datagram.
                Err(Errno::EAGAIN) if self.ask(PollFlags::POLLOUT) == PollFlags::POLLOUT => {
                    tries += 1;
                    Err(if tries > 1 {
                        Errno::ENOBUFS
                    } else {
                        Errno::EINTR
                    })
                }
                other => other,
            }
        })
    }

    /// Whether the peer of a silent descriptor is gone: nothing to read and never again.
    pub(crate) fn peer_is_gone(&self) -> bool {
        if let Medium::Simulated(_, wire) = &self.medium {
            return wire.peer_is_gone();
        }
        if !self.kind.is_socket() {
            return self.hung_up_empty();
        }
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match retry(|| socket::recv(self.number(), &mut [0], flags)) {
            Ok(0) => !self.kind.is_datagram(),
            Ok(_) | Err(Errno::EAGAIN) => false,
            Err(errno) => !(self.kind.is_datagram() && is_passing(errno)),
        }
    }

    /// The same of a pipe or a terminal, which cannot be peeked into.
    fn hung_up_empty(&self) -> bool {
        let end = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        let seen = self.ask(PollFlags::POLLIN);
        seen.intersects(end) && !seen.contains(PollFlags::POLLIN)
    }

    /// What the kernel says now.
    fn ask(&self, flags: PollFlags) -> PollFlags {
        let Some(fd) = self.medium.fd() else {
            return PollFlags::empty();
        };
        let mut asked = [PollFd::new(fd.as_fd(), flags)];
        match retry(|| poll(&mut asked, PollTimeout::ZERO)) {
            Ok(_) => asked[0].revents().unwrap_or(PollFlags::empty()),
            Err(_) => PollFlags::empty(),
        }
    }

    /// Before the close of a connection with unread data: the kernel would answer that
    /// data with a reset, which can overtake what we sent last (RFC 1122, 4.2.2.13), or,
    /// on a Unix socket, stands where the peer expects the end of the stream. So
    /// the stream is ended first and what has arrived is thrown away, within bounds.
    pub(crate) fn finish(&self, buffer: &mut [u8]) {
        if !matches!(self.kind, Kind::Tcp | Kind::UnixStream)
            || self.medium.fd().is_none()
            || !self.is_still_ours()
            || socket::shutdown(self.number(), socket::Shutdown::Write).is_err()
        {
            return;
        }
        for _ in 0..MAX_DISCARDS {
            match self.receive(buffer) {
                Ok(Received::Data { drained: false, .. }) => {}
                _ => return,
            }
        }
    }

    /// Whether the number still names what was adopted, as far as can be seen.
    pub(crate) fn is_still_ours(&self) -> bool {
        !self.is_gone()
            && match &self.medium {
                Medium::Kernel(fd) => fd.as_ref().is_some_and(|fd| self.identity.is_of(fd)),
                Medium::Simulated(..) => true,
            }
    }

    /// Whether the number names something of somebody else that can be watched, and may be
    /// watched by now: then nobody is to be told to stop watching the number.
    #[must_use]
    pub fn is_strangers(&self) -> bool {
        let Some(fd) = self.medium.fd() else {
            return false;
        };
        let Ok(stat) = fstat(fd) else {
            return false;
        };
        Identity::of(&stat) != self.identity
            && !matches!(
                kind_of(fd.as_fd(), &stat),
                Err(AdoptError::Unsupported(
                    "regular" | "directory" | "block_device" | "character_device"
                ))
            )
    }

    fn check(&self) -> nix::Result<()> {
        if self.is_gone() {
            return Err(Errno::EBADF);
        }
        match self.fault() {
            Some(errno) => Err(errno),
            // recv(2) and send(2) refuse what is not a socket; read(2) and write(2) would
            // take any file that has the number now.
            None if !self.kind.is_socket() && !self.is_still_ours() => Err(self.fail(Errno::EBADF)),
            None => Ok(()),
        }
    }

    /// Keeps the first failure: it is the cause, later ones are its echo.
    fn fail(&self, errno: Errno) -> Errno {
        if matches!(errno, Errno::EBADF | Errno::ENOTSOCK) && !self.is_still_ours() {
            self.gone.store(true, Ordering::Release);
        }
        let _ = self
            .fault
            .compare_exchange(0, errno as i32, Ordering::AcqRel, Ordering::Acquire);
        errno
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Descriptor")
            .field("number", &self.number())
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        let Medium::Kernel(fd) = &mut self.medium else {
            return;
        };
        let Some(fd) = fd.take() else { return };
        // Out of the list before close(2): after it the number can be anybody's.
        let number = fd.as_raw_fd();
        let mut live = LIVE.lock();
        // A newer entry is proof as well; nobody can tell a descriptor so while it is dropped.
        let listed = live
            .get(&number)
            .is_some_and(|entry| std::ptr::eq(entry.as_ptr(), self));
        if listed {
            live.remove(&number);
        }
        drop(live);
        let mut known = SERVED.lock();
        if known
            .get(&self.identity)
            .is_some_and(|entry| std::ptr::eq(entry.as_ptr(), self))
        {
            known.remove(&self.identity);
        }
        drop(known);
        if !(listed && !self.is_gone() && self.identity.is_of(&fd)) {
            // Whoever closed the number gave it away: closing it again would hit
            // somebody else.
            let _ = fd.into_raw_fd();
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
const SEND_FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);
// Elsewhere SIGPIPE is ignored process-wide, by the BEAM as by CPython.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
const SEND_FLAGS: MsgFlags = MsgFlags::MSG_DONTWAIT;

/// Buffers of unread data that are thrown away at a close.
const MAX_DISCARDS: usize = 16;

/// Errors that speak of one datagram, not of the socket.
const fn is_passing(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::EMSGSIZE
            | Errno::EPROTO
    )
}

/// Turns an error that speaks of one datagram into one after which [`retry`] goes on.
const fn skip_passing(errno: Errno) -> Errno {
    if is_passing(errno) {
        Errno::EINTR
    } else {
        errno
    }
}

/// A terminal hands out line by line, a pipe in packet mode packet by packet: a short read does
/// not mean that nothing is left.
fn receive_file(fd: &OwnedFd, buffer: &mut [u8]) -> nix::Result<Received> {
    let length = retry(|| {
        make_nonblocking(fd)?;
        nix::unistd::read(fd, buffer)
    })?;
    Ok(match length {
        0 => Received::Eof,
        length => Received::Data {
            length,
            drained: false,
        },
    })
}

/// Sets O_NONBLOCK where it is missing. It belongs to the open file, not
/// to our duplicate of the descriptor: who shares a pipe or a terminal with us may clear it,
/// as shells do. So it is looked at before every call that cannot itself say "do not wait".
fn make_nonblocking(fd: &impl AsFd) -> nix::Result<()> {
    let flags = flags_of(fd)?;
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

fn flags_of(fd: &impl AsFd) -> nix::Result<OFlag> {
    fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain)
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::Ordering;

    use super::Descriptor;

    #[test]
    fn a_report_of_room_overtakes_the_refusal_that_it_answers() {
        let (one, _other) = UnixStream::pair().expect("a pair");
        let descriptor = Descriptor::adopt(one.as_fd()).expect("a stream");
        let room = descriptor.room.load(Ordering::Acquire);
        // Between these two another thread calls send(2), which is refused.
        descriptor.unblock();
        descriptor.block(room);
        assert!(!descriptor.is_blocked());
        descriptor.block(descriptor.room.load(Ordering::Acquire));
        assert!(descriptor.is_blocked());
        descriptor.unblock();
        assert!(!descriptor.is_blocked());
    }
}
