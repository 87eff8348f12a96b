//! Looking at callbacks that take long.

use std::time::Duration;

use reactor_python::{Glance, Look};
use rustler::types::atom::{error, ok};
use rustler::{Encoder, Env, NifResult, ResourceArc, Term};

use crate::beam::post::post;
use crate::context::Context;

mod atoms {
    rustler::atoms! {
        age_ms, callback, ended, fd, job, none, peer, protocol, py_busy, py_look, stack, waited_ms
    }
}

/// context_glance(Context) -> none | #{job, age_ms, callback, fd}: what its worker is in just now
#[rustler::nif]
fn context_glance(env: Env<'_>, context: ResourceArc<Context>) -> NifResult<Term<'_>> {
    match context.glance() {
        Some(glance) => encode_glance(env, glance),
        None => Ok(atoms::none().encode(env)),
    }
}

/// context_await_job(Context) -> ok: the caller gets `py_busy` when the worker begins its next job
#[rustler::nif]
fn context_await_job(env: Env<'_>, context: ResourceArc<Context>) -> rustler::Atom {
    let asker = env.pid();
    context.when_busy(move || post(asker, |env| atoms::py_busy().encode(env)));
    ok()
}

/// context_look(Context, Job, Tag) -> ok: {py_look, Tag, Seen} comes when the GIL can be had
#[rustler::nif]
fn context_look(env: Env<'_>, context: ResourceArc<Context>, job: u64, tag: u64) -> rustler::Atom {
    let asker = env.pid();
    context.look(job, move |seen, waited| {
        let seen = seen.map(|look| look.map(|look| (look.stack(), look)));
        post(asker, move |env| {
            (atoms::py_look(), tag, encode_seen(env, seen, waited)).encode(env)
        });
    });
    ok()
}

fn encode_glance(env: Env<'_>, glance: Glance) -> NifResult<Term<'_>> {
    let (callback, fd) = match glance.place {
        Some(place) => (place.callback.encode(env), place.fd.encode(env)),
        None => (atoms::none().encode(env), atoms::none().encode(env)),
    };
    Term::map_new(env)
        .map_put(atoms::job(), glance.job)?
        .map_put(atoms::age_ms(), millis(glance.age))?
        .map_put(atoms::callback(), callback)?
        .map_put(atoms::fd(), fd)
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
            Err(_) => atoms::ended().encode(env),
        },
        Ok(None) => atoms::ended().encode(env),
        Err(traceback) => (error(), traceback).encode(env),
    }
}

fn encode_look(env: Env<'_>, look: Look, stack: String, waited: Duration) -> NifResult<Term<'_>> {
    encode_glance(env, look.glance)?
        .map_put(atoms::protocol(), look.protocol)?
        .map_put(atoms::peer(), look.peer)?
        .map_put(atoms::stack(), stack)?
        .map_put(atoms::waited_ms(), millis(waited))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
