//! Every NIF: decode, one call, encode.

// ---------------------------------------------------------------------------------------------
// Python: interpreter, calls, log

use std::time::Duration;

use rustler::types::atom::{error, ok};
use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use reactor_python::value::{ConversionError, Value};

use crate::beam::select::report_ready;
use crate::beam::term::{decode, encode};
use crate::calls::{self, Call, Failure, Refused, Work};
use crate::context::{Context, adopt_error};
use crate::functions::{self, FunctionCall, Outcome};
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
    rustler::atoms! { no_context, bad_info, ready_input, ready_output, busy_ms }
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
    let counters = mailbox.counters().snapshot();
    let stats = Term::map_new(env).map_put(reactor_atoms::busy_ms(), mailbox.busy_ms())?;
    counters
        .into_iter()
        .try_fold(stats, |stats, (name, value)| {
            stats.map_put(rustler::Atom::from_str(env, name)?, value)
        })
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
