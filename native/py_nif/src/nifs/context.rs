//! Contexts, and connections on their way to them.

use std::time::Duration;

use reactor::Counters;
use rustler::types::atom::{error, ok};
use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use crate::beam::park::report_ready;
use crate::beam::term::decode;
use crate::context::{Context, adopt_error};
use crate::ticket::Ticket;

mod atoms {
    rustler::atoms! { bad_info, busy_ms, closed_by, no_context, queue_depth, ready_input, ready_output }
}

/// context_start(MaxConnections, LingerMs | -1) -> {ok, Context} | {error, Text}
#[rustler::nif(schedule = "DirtyIo")]
fn context_start(env: Env<'_>, max_connections: usize, linger_ms: i64) -> Term<'_> {
    let settings = reactor::Settings {
        max_connections,
        linger: u64::try_from(linger_ms).ok().map(Duration::from_millis),
    };
    match Context::start(env, settings) {
        Ok(context) => (ok(), context).encode(env),
        Err(text) => (error(), text).encode(env),
    }
}

/// context_stop(Context) -> ok: the process gets {py_worker, stopped} when all is closed
#[rustler::nif]
fn context_stop(context: ResourceArc<Context>) -> rustler::Atom {
    context.stop();
    ok()
}

/// context_interrupt(Context) -> ok
#[rustler::nif]
fn context_interrupt(context: ResourceArc<Context>) -> rustler::Atom {
    context.interrupt();
    ok()
}

/// context_running(Context) -> whether its worker has not ended yet
#[rustler::nif]
fn context_running(context: ResourceArc<Context>) -> bool {
    context.is_running()
}

/// context_busy_ms(Context) -> how long the present turn has been going on
#[rustler::nif]
fn context_busy_ms(context: ResourceArc<Context>) -> u64 {
    context.mailbox().busy_ms()
}

/// context_stats(Context) -> map of counters
#[rustler::nif]
fn context_stats(env: Env<'_>, context: ResourceArc<Context>) -> NifResult<Term<'_>> {
    let mailbox = context.mailbox();
    encode_counters(env, mailbox.counters())?
        .map_put(atoms::queue_depth(), context.door().depth())?
        .map_put(atoms::busy_ms(), mailbox.busy_ms())
}

/// A map of counters, with the map `closed_by` among them.
pub(super) fn encode_counters<'a>(env: Env<'a>, counters: &Counters) -> NifResult<Term<'a>> {
    let map = |numbers: Vec<(&'static str, u64)>| {
        let mut numbers = numbers.into_iter();
        numbers.try_fold(Term::map_new(env), |map, (name, value)| {
            map.map_put(rustler::Atom::from_str(env, name)?, value)
        })
    };
    let closed_by = map(counters.closed_by())?;
    map(counters.snapshot())?.map_put(atoms::closed_by(), closed_by)
}

/// handoff(Context, Fd, Info, Nodelay) -> {ok, Ticket} | {error, Reason}
#[rustler::nif]
fn handoff<'a>(
    env: Env<'a>,
    context: ResourceArc<Context>,
    fd: i64,
    info: Term<'a>,
    nodelay: bool,
) -> Term<'a> {
    let info = match decode(info) {
        Ok(info) => info,
        Err(bad) => {
            return (error(), (atoms::bad_info(), bad.to_string())).encode(env);
        }
    };
    let ticket = Ticket::new(env, env.pid(), atoms::no_context());
    let term = ticket.term(env);
    // What does not fit is no descriptor either.
    let fd = i32::try_from(fd).unwrap_or(-1);
    match context.handoff(fd, info, nodelay, ticket) {
        Ok(()) => (ok(), term).encode(env),
        Err(refused) => adopt_error(env, refused),
    }
}

/// ready(Connection, ready_input | ready_output) -> true | false if that is no connection
#[rustler::nif]
fn ready(connection: Term<'_>, readiness: rustler::Atom) -> NifResult<bool> {
    let interest = if readiness == atoms::ready_input() {
        reactor::Interest::Read
    } else if readiness == atoms::ready_output() {
        reactor::Interest::Write
    } else {
        return Err(Error::BadArg);
    };
    Ok(report_ready(connection, interest))
}
