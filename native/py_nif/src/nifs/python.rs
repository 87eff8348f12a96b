//! Python: the interpreter, calls, the log.

use reactor_python::value::{ConversionError, Value};
use rustler::types::atom::{error, ok};
use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use crate::beam::term::decode;
use crate::calls::{self, Call, Failure, Refused, Work};
use crate::lasting;
use crate::log;
use crate::python::interpreter::{self, Settings};
use crate::ticket::{Ticket, TicketState};

mod atoms {
    rustler::atoms! { call, eval, exec, not_running, overload, stopped }
}

/// keep_types() -> ok
#[rustler::nif]
fn keep_types(env: Env<'_>) -> rustler::Atom {
    lasting::keep(env);
    ok()
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

pub(super) fn decode_map(
    term: Term<'_>,
) -> NifResult<Result<Vec<(Value, Value)>, ConversionError>> {
    match decode(term) {
        Ok(Value::Map(pairs)) => Ok(Ok(pairs)),
        Ok(_) => Err(Error::BadArg),
        Err(error) => Ok(Err(error)),
    }
}
