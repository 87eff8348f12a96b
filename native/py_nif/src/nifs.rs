//! Every NIF: decode, one call, encode.

// ---------------------------------------------------------------------------------------------
// Python: interpreter, calls, log

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use rustler::types::atom::{error, ok};
use rustler::{Binary, Decoder, Encoder, Env, Error, NewBinary, NifResult, ResourceArc, Term};

use nix::errno::Errno;
use reactor::{
    Counters, Endpoint, Limits, ListenOptions, PushError, SendError, Service, SlowConsumer, Stage,
};
use reactor_python::value::{ConversionError, Value};
use reactor_python::{Glance, Look};

use crate::beam::park::report_ready;
use crate::beam::post::post;
use crate::beam::select::Seat;
use crate::beam::term::{decode, encode};
use crate::calls::{self, Call, Failure, Refused, Work};
use crate::connections::{Cancelled, Connection, Watch};
use crate::context::{Context, adopt_error};
use crate::functions::{self, FunctionCall, Outcome};
use crate::lasting;
use crate::listener::{Batch, Listener, Missing, Recipe, Waiting};
use crate::log;
use crate::python::interpreter::{self, Settings};
use crate::ticket::{Ticket, TicketState};

mod atoms {
    rustler::atoms! { exec, eval, call, overload, not_running, stopped }
}

/// start_python(Program, PackagePath, PythonPath, LogLevel) -> ok | {error, Text}; an empty Program is
/// that of the build
#[rustler::nif(schedule = "DirtyIo")]
fn start_python<'a>(
    env: Env<'a>,
    program: String,
    package_path: String,
    python_path: Vec<String>,
    log_level: String,
) -> Term<'a> {
    let settings = Settings {
        program: (!program.is_empty()).then_some(program),
        package_path,
        python_path,
        log_level,
    };
    encode_result(env, interpreter::start(settings))
}

/// start_calls(Threads) -> ok | {error, Text}
#[rustler::nif(schedule = "DirtyIo")]
fn start_calls(env: Env<'_>, threads: usize) -> Term<'_> {
    encode_result(env, calls::start(threads))
}

/// stop_calls() -> ok
#[rustler::nif(schedule = "DirtyIo")]
fn stop_calls() -> rustler::Atom {
    calls::stop();
    ok()
}

/// submit(Work) -> {ok, Ticket} | {error, Reason}: the answer comes as {Ticket, Answer}
#[rustler::nif(schedule = "DirtyCpu")]
fn submit<'a>(env: Env<'a>, work: Term<'a>) -> NifResult<Term<'a>> {
    let work = match decode_work(work)? {
        Ok(work) => work,
        Err(failure) => return Ok(failure.encode(env)),
    };
    let ticket = Ticket::new(env, env.pid(), atoms::stopped());
    let term = ticket.term(env);
    let call = Call {
        work,
        ticket: Some(ticket),
    };
    Ok(match calls::submit(call) {
        Ok(()) => (ok(), term).encode(env),
        Err(refused) => encode_refused(env, refused),
    })
}

/// cast(Work) -> ok | {error, Reason}
#[rustler::nif(schedule = "DirtyCpu")]
fn cast<'a>(env: Env<'a>, work: Term<'a>) -> NifResult<Term<'a>> {
    let work = match decode_work(work)? {
        Ok(work) => work,
        Err(failure) => return Ok(failure.encode(env)),
    };
    Ok(match calls::submit(Call { work, ticket: None }) {
        Ok(()) => ok().encode(env),
        Err(refused) => encode_refused(env, refused),
    })
}

/// cancel(Ticket) -> true if no answer will come, false if one was sent
#[rustler::nif]
fn cancel(ticket: ResourceArc<TicketState>) -> bool {
    ticket.abandon()
}

/// log_register() -> ok: the caller gets the log lines
#[rustler::nif]
fn log_register(env: Env<'_>) -> rustler::Atom {
    log::register(env.pid());
    ok()
}

/// log_taken(Count) -> lines dropped since the last time
#[rustler::nif]
fn log_taken(count: usize) -> u64 {
    log::taken(count)
}

fn encode_result(env: Env<'_>, result: Result<(), String>) -> Term<'_> {
    match result {
        Ok(()) => ok().encode(env),
        Err(text) => (error(), text).encode(env),
    }
}

fn encode_refused(env: Env<'_>, refused: Refused) -> Term<'_> {
    let reason = match refused {
        Refused::Overload => atoms::overload(),
        Refused::NotRunning => atoms::not_running(),
    };
    (error(), reason).encode(env)
}

/// {exec, Code} | {eval, Code, Locals} | {call, Module, Function, Args, Kwargs}. Another shape is a
/// badarg, a term that Python cannot have is a failure.
fn decode_work(work: Term<'_>) -> NifResult<Result<Work, Failure>> {
    let parts = rustler::types::tuple::get_tuple(work)?;
    let (tag, parts) = parts.split_first().ok_or(Error::BadArg)?;
    let tag: rustler::Atom = tag.decode()?;
    let work = match parts {
        [code] if tag == atoms::exec() => Ok(Work::Exec(code.decode()?)),
        [code, locals] if tag == atoms::eval() => {
            let expression = code.decode()?;
            decode_map(*locals)?.map(|locals| Work::Eval { expression, locals })
        }
        [module, function, args, kwargs] if tag == atoms::call() => {
            let (module, function) = (module.decode()?, function.decode()?);
            match (decode_list(*args)?, decode_map(*kwargs)?) {
                (Ok(args), Ok(kwargs)) => Ok(Work::Call {
                    module,
                    function,
                    args,
                    kwargs,
                }),
                (Err(error), _) | (_, Err(error)) => Err(error),
            }
        }
        _ => return Err(Error::BadArg),
    };
    Ok(work.map_err(Failure::from))
}

fn decode_list(term: Term<'_>) -> NifResult<Result<Vec<Value>, ConversionError>> {
    match decode(term) {
        Ok(Value::List(items)) => Ok(Ok(items)),
        Ok(_) => Err(Error::BadArg),
        Err(error) => Ok(Err(error)),
    }
}

fn decode_map(term: Term<'_>) -> NifResult<Result<Vec<(Value, Value)>, ConversionError>> {
    match decode(term) {
        Ok(Value::Map(pairs)) => Ok(Ok(pairs)),
        Ok(_) => Err(Error::BadArg),
        Err(error) => Ok(Err(error)),
    }
}

// ---------------------------------------------------------------------------------------------
// Functions: Erlang from Python

mod function_atoms {
    rustler::atoms! { abandoned, raised, unknown, bad_arity }
}

/// functions_serve() -> ok: the caller gets the calls
#[rustler::nif]
fn functions_serve(env: Env<'_>) -> rustler::Atom {
    functions::serve(env.pid());
    ok()
}

/// functions_set(Names) -> ok
#[rustler::nif]
fn functions_set(names: Vec<String>) -> rustler::Atom {
    functions::set_names(names.into_iter().collect());
    ok()
}

/// function_begin(Call) -> {Name, Args} | abandoned: the caller is the process of the call
#[rustler::nif(schedule = "DirtyCpu")]
fn function_begin(env: Env<'_>, call: ResourceArc<FunctionCall>) -> Term<'_> {
    let Some((name, args)) = call.begin(env.pid()) else {
        return function_atoms::abandoned().encode(env);
    };
    match encode(env, &Value::List(args)) {
        Ok(args) => (name, args).encode(env),
        Err(error) => {
            call.answer(Outcome::BadArgument(error));
            function_atoms::abandoned().encode(env)
        }
    }
}

/// function_answer(Call, Answer) -> whether somebody still waited for it
#[rustler::nif(schedule = "DirtyCpu")]
fn function_answer(call: ResourceArc<FunctionCall>, answer: Term<'_>) -> NifResult<bool> {
    Ok(call.answer(decode_answer(answer)?))
}

/// {ok, Result} | {unknown, Text} | {bad_arity, Text} | {raised, {Kind, Reason, Text, Stacktrace}}
fn decode_answer(answer: Term<'_>) -> NifResult<Outcome> {
    let (tag, detail): (rustler::Atom, Term<'_>) = answer.decode()?;
    if tag == ok() {
        Ok(decode(detail).map_or_else(Outcome::BadResult, Outcome::Value))
    } else if tag == function_atoms::unknown() {
        Ok(Outcome::Unknown(detail.decode()?))
    } else if tag == function_atoms::bad_arity() {
        Ok(Outcome::BadArity(detail.decode()?))
    } else if tag == function_atoms::raised() {
        let (kind, reason, text, stacktrace): (Term<'_>, Term<'_>, String, String) =
            detail.decode()?;
        Ok(Outcome::Raised {
            kind: kind.atom_to_string()?,
            reason: decode(reason).unwrap_or_else(|_| Value::Str(text.clone())),
            text,
            stacktrace,
        })
    } else {
        Err(Error::BadArg)
    }
}

// ---------------------------------------------------------------------------------------------
// Reactor: contexts and connections

mod reactor_atoms {
    rustler::atoms! { no_context, bad_info, ready_input, ready_output, busy_ms, closed_by, closed, dropped, too_large, bad_message, unsent, sending, sent }
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
    let stats = encode_counters(env, mailbox.counters())?;
    stats.map_put(reactor_atoms::busy_ms(), mailbox.busy_ms())
}

/// A map of counters, with the map `closed_by` among them.
fn encode_counters<'a>(env: Env<'a>, counters: &Counters) -> NifResult<Term<'a>> {
    let map = |numbers: Vec<(&'static str, u64)>| {
        let mut numbers = numbers.into_iter();
        numbers.try_fold(Term::map_new(env), |map, (name, value)| {
            map.map_put(rustler::Atom::from_str(env, name)?, value)
        })
    };
    let closed_by = map(counters.closed_by())?;
    map(counters.snapshot())?.map_put(reactor_atoms::closed_by(), closed_by)
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
            return (error(), (reactor_atoms::bad_info(), bad.to_string())).encode(env);
        }
    };
    let ticket = Ticket::new(env, env.pid(), reactor_atoms::no_context());
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
    let interest = if readiness == reactor_atoms::ready_input() {
        reactor::Interest::Read
    } else if readiness == reactor_atoms::ready_output() {
        reactor::Interest::Write
    } else {
        return Err(Error::BadArg);
    };
    Ok(report_ready(connection, interest))
}

// ---------------------------------------------------------------------------------------------
// Slow callbacks

mod watch_atoms {
    rustler::atoms! {
        none, py_busy, py_look, ended, job, age_ms, callback, fd, protocol, peer, stack, waited_ms
    }
}

/// context_glance(Context) -> none | #{job, age_ms, callback, fd}: what its worker is in just now
#[rustler::nif]
fn context_glance(env: Env<'_>, context: ResourceArc<Context>) -> NifResult<Term<'_>> {
    match context.glance() {
        Some(glance) => encode_glance(env, glance),
        None => Ok(watch_atoms::none().encode(env)),
    }
}

/// context_await_job(Context) -> ok: the caller gets `py_busy` when the worker begins its next job
#[rustler::nif]
fn context_await_job(env: Env<'_>, context: ResourceArc<Context>) -> rustler::Atom {
    let asker = env.pid();
    context.when_busy(move || post(asker, |env| watch_atoms::py_busy().encode(env)));
    ok()
}

/// context_look(Context, Job, Tag) -> ok: {py_look, Tag, Seen} comes when the GIL can be had
#[rustler::nif]
fn context_look(env: Env<'_>, context: ResourceArc<Context>, job: u64, tag: u64) -> rustler::Atom {
    let asker = env.pid();
    context.look(job, move |seen, waited| {
        let seen = seen.map(|look| look.map(|look| (look.stack(), look)));
        post(asker, move |env| {
            (watch_atoms::py_look(), tag, encode_seen(env, seen, waited)).encode(env)
        });
    });
    ok()
}

fn encode_glance(env: Env<'_>, glance: Glance) -> NifResult<Term<'_>> {
    let (callback, fd) = match glance.place {
        Some(place) => (place.callback.encode(env), place.fd.encode(env)),
        None => (
            watch_atoms::none().encode(env),
            watch_atoms::none().encode(env),
        ),
    };
    Term::map_new(env)
        .map_put(watch_atoms::job(), glance.job)?
        .map_put(watch_atoms::age_ms(), millis(glance.age))?
        .map_put(watch_atoms::callback(), callback)?
        .map_put(watch_atoms::fd(), fd)
}

/// ended | {ok, #{job, age_ms, callback, fd, protocol, peer, stack, waited_ms}} | {error, Traceback}
fn encode_seen(
    env: Env<'_>,
    seen: Result<Option<(String, Look)>, String>,
    waited: Duration,
) -> Term<'_> {
    match seen {
        Ok(Some((stack, look))) => match encode_look(env, look, stack, waited) {
            Ok(map) => (ok(), map).encode(env),
            Err(_) => watch_atoms::ended().encode(env),
        },
        Ok(None) => watch_atoms::ended().encode(env),
        Err(traceback) => (error(), traceback).encode(env),
    }
}

fn encode_look(env: Env<'_>, look: Look, stack: String, waited: Duration) -> NifResult<Term<'_>> {
    encode_glance(env, look.glance)?
        .map_put(watch_atoms::protocol(), look.protocol)?
        .map_put(watch_atoms::peer(), look.peer)?
        .map_put(watch_atoms::stack(), stack)?
        .map_put(watch_atoms::waited_ms(), millis(waited))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

// ---------------------------------------------------------------------------------------------
// Single connections

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
        Err(bad) => (error(), (reactor_atoms::bad_message(), bad.to_string())).encode(env),
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
                PushError::Closed => reactor_atoms::closed(),
                PushError::Full => atoms::overload(),
                PushError::Dropped => reactor_atoms::dropped(),
                PushError::TooLarge => reactor_atoms::too_large(),
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
        Cancelled::Unsent => reactor_atoms::unsent(),
        Cancelled::Sending => reactor_atoms::sending(),
        Cancelled::Sent => reactor_atoms::sent(),
    }
}

fn encode_send_error(env: Env<'_>, refused: SendError) -> Term<'_> {
    let reason = match refused {
        SendError::Closed => reactor_atoms::closed(),
        SendError::Full => atoms::overload(),
    };
    (error(), reason).encode(env)
}

// ---------------------------------------------------------------------------------------------
// Listeners

mod listener_atoms {
    rustler::atoms! {
        bad_option, protocol, info, undefined, infinity, tcp, local, open, closed,
        serving, draining, ending, drop_old, drop_new, buffer, disconnect,
        armed, lent, more, full, pause, einval
    }
}

/// recipe_new(undefined | {Module, Name, Kwargs}, Info) -> {ok, Recipe} | {error, {bad_option, Key}}
#[rustler::nif]
fn recipe_new<'a>(env: Env<'a>, protocol: Term<'a>, info: Term<'a>) -> NifResult<Term<'a>> {
    let bad = |key: rustler::Atom| (error(), (listener_atoms::bad_option(), key)).encode(env);
    let named = match decode_protocol(protocol)? {
        Ok(named) => named,
        Err(_) => return Ok(bad(listener_atoms::protocol())),
    };
    Ok(match decode_map(info)? {
        Ok(info) => (ok(), Recipe::new(named, info)).encode(env),
        Err(_) => bad(listener_atoms::info()),
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
    let ticket = Ticket::new(env, env.pid(), reactor_atoms::no_context());
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
            return if infinity == listener_atoms::infinity() {
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

/// listener_new(Recipe, Options) -> Listener
#[rustler::nif]
fn listener_new<'a>(
    env: Env<'a>,
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
        Service::new(limits, options.max_connections.number()),
        recipe,
        decode_endpoint(options.endpoint)?,
        listen_options,
    );
    Ok(ResourceArc::new(listener).encode(env))
}

/// {tcp, Ip, Port} | {local, Path}
fn decode_endpoint(term: Term<'_>) -> NifResult<Endpoint> {
    if let Ok((kind, path)) = term.decode::<(rustler::Atom, Binary<'_>)>()
        && kind == listener_atoms::local()
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
    if policy == listener_atoms::drop_old() {
        Ok(SlowConsumer::DropOld)
    } else if policy == listener_atoms::drop_new() {
        Ok(SlowConsumer::DropNew)
    } else if policy == listener_atoms::disconnect() {
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
            (listener_atoms::local(), Term::from(binary)).encode(env)
        }
    }
}

/// listener_state(Listener) -> {open | closed, Stage}
#[rustler::nif]
fn listener_state(env: Env<'_>, listener: ResourceArc<Listener>) -> Term<'_> {
    let socket = if listener.is_open() {
        listener_atoms::open()
    } else {
        listener_atoms::closed()
    };
    let stage = match listener.service().stage() {
        Stage::Serving => listener_atoms::serving(),
        Stage::Draining => listener_atoms::draining(),
        Stage::Ending => listener_atoms::ending(),
    };
    (socket, stage).encode(env)
}

/// listener_set_stage(Listener, Stage) -> ok
#[rustler::nif]
fn listener_set_stage(
    listener: ResourceArc<Listener>,
    stage: rustler::Atom,
) -> NifResult<rustler::Atom> {
    let stage = if stage == listener_atoms::serving() {
        Stage::Serving
    } else if stage == listener_atoms::draining() {
        Stage::Draining
    } else if stage == listener_atoms::ending() {
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
    encode_counters(env, listener.counters())
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
        u64::MAX => listener_atoms::infinity().encode(env),
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
        Ok(None) => listener_atoms::closed().encode(env),
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
        Batch::Empty => return listener_atoms::armed().encode(env),
        Batch::More => return listener_atoms::more().encode(env),
        Batch::Full => return listener_atoms::full().encode(env),
        Batch::Lent => return listener_atoms::lent().encode(env),
        Batch::Closed => return listener_atoms::closed().encode(env),
        Batch::Pause(Missing::Context) => reactor_atoms::no_context(),
        Batch::Pause(Missing::Room) => atoms::overload(),
        Batch::Pause(Missing::Errno(errno)) => posix_atom(env, errno),
    };
    (listener_atoms::pause(), reason).encode(env)
}

/// As in `inet:posix()`: the name of the error in small letters.
fn posix(env: Env<'_>, failure: &io::Error) -> rustler::Atom {
    match failure.raw_os_error() {
        Some(number) => posix_atom(env, Errno::from_raw(number)),
        None => listener_atoms::einval(),
    }
}

fn posix_atom(env: Env<'_>, errno: Errno) -> rustler::Atom {
    let name = format!("{errno:?}").to_lowercase();
    rustler::Atom::from_str(env, &name).unwrap_or(listener_atoms::einval())
}

// ---------------------------------------------------------------------------------------------
// Loading

/// keep_types() -> ok
#[rustler::nif]
fn keep_types(env: Env<'_>) -> rustler::Atom {
    lasting::keep(env);
    ok()
}
