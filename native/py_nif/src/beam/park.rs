//! Parking connections in the BEAM's own poll set.

use std::ffi::CStr;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use parking_lot::Mutex;
use reactor::{Demultiplexer, Descriptor, Interest, Key, Mailbox, Readiness};
use rustler::{LocalPid, Term};

use crate::beam::select::{Kind, Seat, Watched};

/// What the BEAM holds of a parked connection.
pub(crate) struct Parked {
    key: Key,
    mailbox: Arc<Mailbox>,
    /// Taken out when the selection is over. The lock is never held across a call.
    descriptor: Mutex<Option<Arc<Descriptor>>>,
}

impl Watched for Parked {
    const NAME: &'static CStr = c"py_reactor_connection";

    fn kind() -> &'static Kind {
        static KIND: Kind = Kind::new();
        &KIND
    }

    /// Takes the descriptor out of the resource, which the BEAM may keep for longer. It is
    /// closed, unless the engine still has it.
    fn stopped(&self) {
        let descriptor = self.descriptor.lock().take();
        drop(descriptor);
    }
}

impl Parked {
    fn descriptor(&self) -> Option<Arc<Descriptor>> {
        self.descriptor.lock().clone()
    }
}

/// Tells the worker of a parked connection that it is ready. False if `connection` is no
/// connection.
pub(crate) fn report_ready(connection: Term<'_>, interest: Interest) -> bool {
    let Some(seat) = Seat::<Parked>::of(connection) else {
        return false;
    };
    let readiness = match interest {
        Interest::Read => Readiness::READ,
        Interest::Write => Readiness::WRITE,
    };
    seat.mailbox.ready(seat.key, readiness);
    true
}

/// Parks the connections of one context; its process gets the messages.
#[derive(Clone, Copy)]
pub(crate) struct BeamDemultiplexer {
    process: LocalPid,
    undefined: rustler::Atom,
}

impl BeamDemultiplexer {
    pub(crate) const fn new(process: LocalPid, undefined: rustler::Atom) -> Self {
        Self { process, undefined }
    }

    fn stop(&self, number: RawFd, seat: &Seat<Parked>) {
        seat.stop(number, self.process, self.undefined);
    }
}

impl Demultiplexer for BeamDemultiplexer {
    type Seat = Seat<Parked>;

    fn seat(
        &mut self,
        key: Key,
        descriptor: &Arc<Descriptor>,
        mailbox: &Arc<Mailbox>,
    ) -> io::Result<Self::Seat> {
        let seat = Seat::new(Parked {
            key,
            mailbox: Arc::clone(mailbox),
            descriptor: Mutex::new(Some(Arc::clone(descriptor))),
        })?;
        let (demultiplexer, number, same) = (*self, descriptor.number(), seat.clone());
        // Descriptor and seat refer to each other until one of them takes this back.
        descriptor.is_watched(Box::new(move || demultiplexer.stop(number, &same)));
        Ok(seat)
    }

    fn arm(&mut self, seat: &Self::Seat, interest: Interest) -> io::Result<()> {
        let number = seat.descriptor().ok_or(io::ErrorKind::NotFound)?.number();
        seat.arm(number, interest, self.process, self.undefined)
    }

    fn retire(&mut self, seat: Self::Seat) {
        let Some(descriptor) = seat.descriptor() else {
            return;
        };
        match descriptor.take_watch() {
            // STOP would take the number away from whoever watches it now, a port for
            // instance. What the BEAM still keeps of us goes when the number is selected.
            Some(end) if !descriptor.is_strangers() => end(),
            Some(_) | None => seat.stopped(),
        }
    }
}
