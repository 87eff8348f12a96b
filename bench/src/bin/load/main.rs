//! A closed-loop echo load client: one thread, one epoll, every byte checked.
//!
//! Each connection sends a message, waits until all of it has come back, compares every byte, and
//! sends the next. These modes measure speed:
//!
//! - steady (default): connections stay open; requests a second, latency, CPU of the server;
//! - `--pipeline`: the same with many messages under way on each connection;
//! - `--upload`, `--download`: one way, MiB a second;
//! - `--churn`: connect, one echo, close, again; connections a second;
//! - `--mixed-close`: the same until `--count`, ending connections in four different ways.
//!
//! Their exit status is 0 only when every byte was right and no connection failed.
//!
//! The others are clients as a server meets them on a bad day, and count what becomes of them:
//!
//! - `--rounds`: very many connections, each of which speaks now and then;
//! - `--crowd`: more clients at once than the server wants to serve;
//! - `--dribble`: clients that never finish what they say;
//! - `--storm`: clients that reset, vanish, and take no answer;
//! - `--hoard`: clients that send much and read nothing for a time;
//! - `--reconnect`: clients whose connections fail and that come again;
//! - `--probe`: one that behaves well and notes how long it waits beside all of these.
//!
//! Here a failed connection is counted and told, and the exit status says whether the client could
//! do its work; a wrong byte is a failure in every mode.

#![deny(unsafe_code)]

mod args;
mod churn;
mod connection;
mod crowd;
mod deadline;
mod dribble;
mod findings;
mod flow;
mod histogram;
mod hoard;
mod message;
mod pipeline;
mod poll;
mod probe;
mod process;
mod reconnect;
mod report;
mod rounds;
mod steady;
mod storm;

use std::error::Error;
use std::process::ExitCode;

use args::{Args, Mode};
use findings::Findings;
use report::Report;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(args) = Args::parse(std::env::args().skip(1))? else {
        println!("{}", args::USAGE);
        return Ok(());
    };
    let (json, text) = match args.mode {
        Mode::Steady => told(steady::run(&args)?),
        Mode::Pipeline => told(pipeline::run(&args)?),
        Mode::Upload | Mode::Download => told(flow::run(&args)?),
        Mode::Churn | Mode::MixedClose => told(churn::run(&args)?),
        Mode::Rounds => found(rounds::run(&args)?),
        Mode::Crowd => found(crowd::run(&args)?),
        Mode::Dribble => found(dribble::run(&args)?),
        Mode::Storm => found(storm::run(&args)?),
        Mode::Hoard => found(hoard::run(&args)?),
        Mode::Reconnect => found(reconnect::run(&args)?),
        Mode::Probe => found(probe::run(&args)?),
    };
    println!("{}", if args.json { json } else { text });
    Ok(())
}

fn told(report: Report) -> (String, String) {
    (report.json(), report.text())
}

fn found(findings: Findings) -> (String, String) {
    (findings.json(), findings.text())
}
