//! A closed-loop echo load client: one thread, one epoll, every byte checked.
//!
//! Each connection sends a message, waits until all of it has come back, compares every byte, and
//! sends the next. Three modes share that rule:
//!
//! - steady (default): connections stay open; requests a second, latency, CPU of the server;
//! - `--churn`: connect, one echo, close, again; connections a second;
//! - `--mixed-close`: the same until `--count`, ending connections in four different ways.
//!
//! The exit status is 0 only when every byte was right and no connection failed.

#![deny(unsafe_code)]

mod args;
mod churn;
mod connection;
mod histogram;
mod message;
mod process;
mod report;
mod steady;

use std::error::Error;
use std::process::ExitCode;

use args::{Args, Mode};

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
    let report = match args.mode {
        Mode::Steady => steady::run(&args)?,
        Mode::Churn | Mode::MixedClose => churn::run(&args)?,
    };
    println!(
        "{}",
        if args.json {
            report.json()
        } else {
            report.text()
        }
    );
    Ok(())
}
