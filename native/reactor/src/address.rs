//! The address of a peer, of whatever family.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage};

/// Where a connection or a datagram comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IPv4 or IPv6 endpoint.
    Inet(SocketAddr),
    /// A bound Unix socket; an abstract name begins with a NUL byte.
    Unix(PathBuf),
}

impl Address {
    /// The address in a socket address of the kernel; `None` where it has no name.
    #[must_use]
    pub fn from_storage(storage: &SockaddrStorage) -> Option<Self> {
        match storage.family()? {
            AddressFamily::Inet => storage
                .as_sockaddr_in()
                .map(|address| Self::Inet(SocketAddr::V4((*address).into()))),
            AddressFamily::Inet6 => storage
                .as_sockaddr_in6()
                .map(|address| Self::Inet(SocketAddr::V6((*address).into()))),
            AddressFamily::Unix => Self::from_unix(storage),
            _ => None,
        }
    }

    fn from_unix(storage: &SockaddrStorage) -> Option<Self> {
        let address = storage.as_unix_addr()?;
        if let Some(path) = address.path() {
            return Some(Self::Unix(path.to_path_buf()));
        }
        #[cfg(target_os = "linux")]
        if let Some(name) = address.as_abstract() {
            let bytes = std::iter::once(0).chain(name.iter().copied()).collect();
            return Some(Self::Unix(std::ffi::OsString::from_vec(bytes).into()));
        }
        None
    }
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(out),
            Self::Unix(path) => path.display().fmt(out),
        }
    }
}
