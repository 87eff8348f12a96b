//! Looking at callbacks that take long.

use std::time::Duration;

use reactor_python::Look;
use rustler::types::atom::{error, ok};
use rustler::{Encoder, Env, NifResult, ResourceArc, Term};

use crate::beam::post::post;
use crate::context::Context;
use crate::sentry::{self, encode_glance, millis};

mod atoms {
    rustler::atoms! {
        ended, peer, protocol, py_look, stack, waited_ms
    }
}

/// watch_jobs(SlowMs) -> ok: the caller is told of jobs that take long, 0: nobody is
#[rustler::nif]
fn watch_jobs(env: Env<'_>, slow_ms: u64) -> rustler::Atom {
    let slow = (slow_ms > 0).then(|| Duration::from_millis(slow_ms));
    sentry::watch_jobs(env.pid(), slow);
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
    encode_glance(env, look.glance)
        .map_put(atoms::protocol(), look.protocol)?
        .map_put(atoms::peer(), look.peer)?
        .map_put(atoms::stack(), stack)?
        .map_put(atoms::waited_ms(), millis(waited))
}
