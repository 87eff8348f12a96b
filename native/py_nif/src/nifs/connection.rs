//! Single connections.

use reactor::{PushError, SendError};
use rustler::types::atom::{error, ok};
use rustler::{Binary, Encoder, Env, NifResult, ResourceArc, Term};

use crate::beam::term::decode;
use crate::connections::{Cancelled, Connection, Watch};

mod atoms {
    rustler::atoms! { bad_message, closed, dropped, overload, sending, sent, too_large, unsent }
}

/// connection_send(Connection, Term) -> ok | {error, Reason}
#[rustler::nif]
fn connection_send<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    message: Term<'a>,
) -> Term<'a> {
    send_to(env, &connection, message)
}

/// The same for a term that takes a scheduler long to read
#[rustler::nif(schedule = "DirtyCpu")]
fn connection_send_large<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    message: Term<'a>,
) -> Term<'a> {
    send_to(env, &connection, message)
}

fn send_to<'a>(env: Env<'a>, connection: &Connection, message: Term<'a>) -> Term<'a> {
    match decode(message) {
        Err(bad) => (error(), (atoms::bad_message(), bad.to_string())).encode(env),
        Ok(message) => match connection.send(message) {
            Ok(()) => ok().encode(env),
            Err(refused) => encode_send_error(env, refused),
        },
    }
}

/// connection_push(Connection, Iodata) -> ok | {error, Reason}
#[rustler::nif]
fn connection_push<'a>(
    env: Env<'a>,
    connection: ResourceArc<Connection>,
    data: Term<'a>,
) -> NifResult<Term<'a>> {
    let bytes = Binary::from_iolist(data)?;
    Ok(match connection.push(bytes.as_slice()) {
        Ok(()) => ok().encode(env),
        Err(refused) => {
            let reason = match refused {
                PushError::Closed => atoms::closed(),
                PushError::Full => atoms::overload(),
                PushError::Dropped => atoms::dropped(),
                PushError::TooLarge => atoms::too_large(),
            };
            (error(), reason).encode(env)
        }
    })
}

/// connection_close(Connection) -> ok | {error, closed}
#[rustler::nif]
fn connection_close(env: Env<'_>, connection: ResourceArc<Connection>) -> Term<'_> {
    match connection.close() {
        Ok(()) => ok().encode(env),
        Err(refused) => encode_send_error(env, refused),
    }
}

/// connection_monitor(Connection) -> Monitor
#[rustler::nif]
fn connection_monitor(env: Env<'_>, connection: ResourceArc<Connection>) -> ResourceArc<Watch> {
    Watch::start(env, connection)
}

/// connection_demonitor(Monitor) -> unsent | sending | sent: what became of its message
#[rustler::nif]
fn connection_demonitor(watch: ResourceArc<Watch>) -> rustler::Atom {
    match watch.cancel() {
        Cancelled::Unsent => atoms::unsent(),
        Cancelled::Sending => atoms::sending(),
        Cancelled::Sent => atoms::sent(),
    }
}

fn encode_send_error(env: Env<'_>, refused: SendError) -> Term<'_> {
    let reason = match refused {
        SendError::Closed => atoms::closed(),
        SendError::Full => atoms::overload(),
    };
    (error(), reason).encode(env)
}
