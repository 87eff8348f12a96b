//! Listeners and acceptors.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use nix::errno::Errno;
use reactor::{Endpoint, Limits, ListenOptions, Service, SlowConsumer, Stage};
use reactor_python::value::ConversionError;
use rustler::types::atom::{error, ok};
use rustler::{Binary, Decoder, Encoder, Env, Error, NewBinary, NifResult, ResourceArc, Term};

use super::context::encode_counters;
use super::python::decode_map;
use crate::beam::select::Seat;
use crate::context::Context;
use crate::listener::{Batch, Listener, Missing, Recipe, Waiting};
use crate::ticket::Ticket;

mod atoms {
    rustler::atoms! {
        armed, bad_option, closed, disconnect, draining, drop_new, drop_old, einval, ending, full,
        infinity, info, lent, local, more, no_context, open, overload, pause, protocol, serving,
        stopped
    }
}

/// recipe_new(undefined | {Module, Name, Kwargs}, Info) -> {ok, Recipe} | {error, {bad_option, Key}}
#[rustler::nif]
fn recipe_new<'a>(env: Env<'a>, protocol: Term<'a>, info: Term<'a>) -> NifResult<Term<'a>> {
    let bad = |key: rustler::Atom| (error(), (atoms::bad_option(), key)).encode(env);
    let named = match decode_protocol(protocol)? {
        Ok(named) => named,
        Err(_) => return Ok(bad(atoms::protocol())),
    };
    Ok(match decode_map(info)? {
        Ok(info) => (ok(), Recipe::new(named, info)).encode(env),
        Err(_) => bad(atoms::info()),
    })
}

fn decode_protocol(
    term: Term<'_>,
) -> NifResult<Result<Option<reactor_python::Named>, ConversionError>> {
    if term.is_atom() {
        return Ok(Ok(None));
    }
    let (module, name, kwargs): (String, String, Term<'_>) = term.decode()?;
    Ok(decode_map(kwargs)?.map(|kwargs| {
        Some(reactor_python::Named {
            module,
            name,
            kwargs,
        })
    }))
}

/// recipe_prepare(Recipe, Context) -> Ticket
#[rustler::nif]
fn recipe_prepare<'a>(
    env: Env<'a>,
    recipe: ResourceArc<Recipe>,
    context: ResourceArc<Context>,
) -> Term<'a> {
    let ticket = Ticket::new(env, env.pid(), atoms::no_context());
    let term = ticket.term(env);
    recipe.prepare(&context, ticket);
    term
}

#[derive(rustler::NifMap)]
#[rustler(decode)]
struct ListenerOptions<'a> {
    endpoint: Term<'a>,
    backlog: u32,
    reuseport: bool,
    nodelay: bool,
    max_connections: Bound,
    idle_timeout: Bound,
    handshake_timeout: Bound,
    write_timeout: Bound,
    high_water: usize,
    low_water: usize,
    slow_consumer: Term<'a>,
}

/// A number, or `infinity`.
struct Bound(Option<u64>);

impl<'a> Decoder<'a> for Bound {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        if term.is_atom() {
            let infinity: rustler::Atom = term.decode()?;
            return if infinity == atoms::infinity() {
                Ok(Self(None))
            } else {
                Err(Error::BadArg)
            };
        }
        term.decode().map(|number| Self(Some(number)))
    }
}

impl Bound {
    fn duration(&self) -> Option<Duration> {
        self.0.map(Duration::from_millis)
    }

    fn number(&self) -> u64 {
        self.0.unwrap_or(u64::MAX)
    }
}

/// listener_new(Name, Recipe, Options) -> Listener
#[rustler::nif]
fn listener_new<'a>(
    env: Env<'a>,
    name: String,
    recipe: ResourceArc<Recipe>,
    options: ListenerOptions<'a>,
) -> NifResult<Term<'a>> {
    let limits = Limits {
        idle_timeout: options.idle_timeout.duration(),
        handshake_timeout: options.handshake_timeout.duration(),
        write_timeout: options.write_timeout.duration(),
        high_water: options.high_water,
        low_water: options.low_water,
        slow_consumer: decode_slow_consumer(options.slow_consumer)?,
    };
    let listen_options = ListenOptions {
        backlog: options.backlog,
        reuseport: options.reuseport,
        nodelay: options.nodelay,
    };
    let listener = Listener::new(
        Service::new(name, limits, options.max_connections.number()),
        recipe,
        decode_endpoint(options.endpoint)?,
        listen_options,
    );
    Ok(ResourceArc::new(listener).encode(env))
}

/// {tcp, Ip, Port} | {local, Path}
fn decode_endpoint(term: Term<'_>) -> NifResult<Endpoint> {
    if let Ok((kind, path)) = term.decode::<(rustler::Atom, Binary<'_>)>()
        && kind == atoms::local()
    {
        return Ok(Endpoint::Unix(
            OsString::from_vec(path.as_slice().to_vec()).into(),
        ));
    }
    let (_tcp, ip, port): (rustler::Atom, Term<'_>, u16) = term.decode()?;
    let parts = rustler::types::tuple::get_tuple(ip)?;
    let parts: Vec<u16> = parts
        .iter()
        .map(|part| part.decode())
        .collect::<NifResult<_>>()?;
    Ok(Endpoint::Tcp(SocketAddr::new(decode_ip(&parts)?, port)))
}

fn decode_ip(parts: &[u16]) -> NifResult<IpAddr> {
    if let Ok(parts) = <[u16; 8]>::try_from(parts) {
        return Ok(IpAddr::from(parts));
    }
    let bytes: Vec<u8> = parts
        .iter()
        .map(|part| u8::try_from(*part).map_err(|_| Error::BadArg))
        .collect::<NifResult<_>>()?;
    <[u8; 4]>::try_from(bytes.as_slice())
        .map(IpAddr::from)
        .map_err(|_| Error::BadArg)
}

fn decode_slow_consumer(term: Term<'_>) -> NifResult<SlowConsumer> {
    if let Ok((_buffer, messages)) = term.decode::<(rustler::Atom, usize)>() {
        return Ok(SlowConsumer::Buffer(messages));
    }
    let policy: rustler::Atom = term.decode()?;
    if policy == atoms::drop_old() {
        Ok(SlowConsumer::DropOld)
    } else if policy == atoms::drop_new() {
        Ok(SlowConsumer::DropNew)
    } else if policy == atoms::disconnect() {
        Ok(SlowConsumer::Disconnect)
    } else {
        Err(Error::BadArg)
    }
}

/// listener_own(Listener) -> ok: it ends with the calling process
#[rustler::nif]
fn listener_own(env: Env<'_>, listener: ResourceArc<Listener>) -> rustler::Atom {
    // Without a monitor the process is dying, and will not open anything.
    let _ = env.monitor(&listener, &env.pid());
    ok()
}

/// listener_open(Listener) -> ok | {error, Posix}
#[rustler::nif(schedule = "DirtyIo")]
fn listener_open(env: Env<'_>, listener: ResourceArc<Listener>) -> Term<'_> {
    match listener.open() {
        Ok(()) => ok().encode(env),
        Err(failure) => (error(), posix(env, &failure)).encode(env),
    }
}

/// listener_close(Listener, [Context]) -> ok
#[rustler::nif(schedule = "DirtyIo")]
fn listener_close(
    listener: ResourceArc<Listener>,
    contexts: Vec<ResourceArc<Context>>,
) -> rustler::Atom {
    listener.close(&contexts);
    ok()
}

/// listener_address(Listener) -> {Ip, Port} | {local, Path}
#[rustler::nif]
fn listener_address(env: Env<'_>, listener: ResourceArc<Listener>) -> Term<'_> {
    match listener.endpoint() {
        Endpoint::Tcp(address) => {
            let ip = match address.ip() {
                IpAddr::V4(ip) => {
                    let [a, b, c, d] = ip.octets();
                    (a, b, c, d).encode(env)
                }
                IpAddr::V6(ip) => {
                    let parts: Vec<Term<'_>> = ip.segments().map(|part| part.encode(env)).into();
                    rustler::types::tuple::make_tuple(env, &parts)
                }
            };
            (ip, address.port()).encode(env)
        }
        Endpoint::Unix(path) => {
            let bytes = path.as_os_str().as_bytes();
            let mut binary = NewBinary::new(env, bytes.len());
            binary.as_mut_slice().copy_from_slice(bytes);
            (atoms::local(), Term::from(binary)).encode(env)
        }
    }
}

/// listener_state(Listener) -> {open | closed, Stage}
#[rustler::nif]
fn listener_state(env: Env<'_>, listener: ResourceArc<Listener>) -> Term<'_> {
    let socket = if listener.is_open() {
        atoms::open()
    } else {
        atoms::closed()
    };
    let stage = match listener.service().stage() {
        Stage::Serving => atoms::serving(),
        Stage::Draining => atoms::draining(),
        Stage::Ending => atoms::ending(),
    };
    (socket, stage).encode(env)
}

/// listener_set_stage(Listener, Stage) -> ok
#[rustler::nif]
fn listener_set_stage(
    listener: ResourceArc<Listener>,
    stage: rustler::Atom,
) -> NifResult<rustler::Atom> {
    let stage = if stage == atoms::serving() {
        Stage::Serving
    } else if stage == atoms::draining() {
        Stage::Draining
    } else if stage == atoms::ending() {
        Stage::Ending
    } else {
        return Err(Error::BadArg);
    };
    listener.set_stage(stage);
    Ok(ok())
}

/// listener_stats(Listener) -> map of counters
#[rustler::nif]
fn listener_stats(env: Env<'_>, listener: ResourceArc<Listener>) -> NifResult<Term<'_>> {
    encode_counters(env, &listener.counters())
}

/// listener_set_max_connections(Listener, Number | infinity) -> ok
#[rustler::nif]
fn listener_set_max_connections(listener: ResourceArc<Listener>, most: Bound) -> rustler::Atom {
    listener.service().set_max_connections(most.number());
    ok()
}

/// listener_max_connections(Listener) -> Number | infinity
#[rustler::nif]
fn listener_max_connections(env: Env<'_>, listener: ResourceArc<Listener>) -> Term<'_> {
    match listener.service().max_connections() {
        u64::MAX => atoms::infinity().encode(env),
        most => most.encode(env),
    }
}

/// listener_await(Listener, From, To) -> Ticket: {Ticket, Active} as soon as that lies in the range
#[rustler::nif]
fn listener_await<'a>(
    env: Env<'a>,
    listener: ResourceArc<Listener>,
    from: u64,
    to: Bound,
) -> Term<'a> {
    let ticket = Ticket::new(env, env.pid(), atoms::stopped());
    let term = ticket.term(env);
    let is_stale = ticket.is_abandoned();
    let notice = |active: u64| ticket.answer(move |env| active.encode(env));
    listener
        .service()
        .when_active(from..=to.number(), Box::new(is_stale), Box::new(notice));
    term
}

/// acceptor_open(Listener) -> {ok, Acceptor} | closed | {error, Posix}
#[rustler::nif]
fn acceptor_open(env: Env<'_>, listener: ResourceArc<Listener>) -> Term<'_> {
    match Waiting::open(env, listener) {
        Ok(Some(acceptor)) => (ok(), acceptor.term(env)).encode(env),
        Ok(None) => atoms::closed().encode(env),
        Err(failure) => (error(), posix(env, &failure)).encode(env),
    }
}

/// acceptor_accept(Acceptor, [Context]) -> armed | lent | more | full | {pause, Reason} | closed
#[rustler::nif]
fn acceptor_accept<'a>(
    env: Env<'a>,
    acceptor: Term<'a>,
    contexts: Vec<ResourceArc<Context>>,
) -> NifResult<Term<'a>> {
    let acceptor = Seat::<Waiting>::of(acceptor).ok_or(Error::BadArg)?;
    let batch = Waiting::accept(&acceptor, &contexts);
    Ok(encode_batch(env, batch))
}

/// acceptor_close(Acceptor) -> ok
#[rustler::nif]
fn acceptor_close(acceptor: Term<'_>) -> NifResult<rustler::Atom> {
    let acceptor = Seat::<Waiting>::of(acceptor).ok_or(Error::BadArg)?;
    Waiting::close(&acceptor);
    Ok(ok())
}

fn encode_batch(env: Env<'_>, batch: Batch) -> Term<'_> {
    let reason = match batch {
        Batch::Empty => return atoms::armed().encode(env),
        Batch::More => return atoms::more().encode(env),
        Batch::Full => return atoms::full().encode(env),
        Batch::Lent => return atoms::lent().encode(env),
        Batch::Closed => return atoms::closed().encode(env),
        Batch::Pause(Missing::Context) => atoms::no_context(),
        Batch::Pause(Missing::Room) => atoms::overload(),
        Batch::Pause(Missing::Errno(errno)) => posix_atom(env, errno),
    };
    (atoms::pause(), reason).encode(env)
}

/// As in `inet:posix()`: the name of the error in small letters.
fn posix(env: Env<'_>, failure: &io::Error) -> rustler::Atom {
    match failure.raw_os_error() {
        Some(number) => posix_atom(env, Errno::from_raw(number)),
        None => atoms::einval(),
    }
}

fn posix_atom(env: Env<'_>, errno: Errno) -> rustler::Atom {
    let name = format!("{errno:?}").to_lowercase();
    rustler::Atom::from_str(env, &name).unwrap_or(atoms::einval())
}
