//! Functions of Erlang that Python calls.

use reactor_python::value::Value;
use rustler::types::atom::ok;
use rustler::{Encoder, Env, Error, NifResult, ResourceArc, Term};

use crate::beam::term::{decode, encode};
use crate::functions::{self, FunctionCall, Outcome};

mod atoms {
    rustler::atoms! { abandoned, bad_arity, raised, unknown }
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
        return atoms::abandoned().encode(env);
    };
    match encode(env, &Value::List(args)) {
        Ok(args) => (name, args).encode(env),
        Err(error) => {
            call.answer(Outcome::BadArgument(error));
            atoms::abandoned().encode(env)
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
    } else if tag == atoms::unknown() {
        Ok(Outcome::Unknown(detail.decode()?))
    } else if tag == atoms::bad_arity() {
        Ok(Outcome::BadArity(detail.decode()?))
    } else if tag == atoms::raised() {
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
