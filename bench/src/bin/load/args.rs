//! The command line.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::Result;

pub(crate) const USAGE: &str = "\
usage: load --address HOST:PORT [options]
  --connections N   busy connections (default 50)
  --size BYTES      of one message (default 64)
  --seconds S       measured time (default 3)
  --warmup S        the same load before it, not counted (default 1)
  --idle M          further connections that stay silent; each must echo once at the end
  --greet           the idle ones echo once before they fall silent, too
  --pid PID         of the server: its CPU, resident memory and descriptors are reported
  --churn           connect, one echo, close, and again
  --mixed-close     the same, closing in turn by FIN, by reset, by half-close, with unread data
  --count N         end --churn or --mixed-close after N connections instead of --seconds
  --json            one line of JSON instead of text";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Steady,
    Churn,
    MixedClose,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Steady => "steady",
            Mode::Churn => "churn",
            Mode::MixedClose => "mixed-close",
        }
    }
}

pub(crate) struct Args {
    pub(crate) mode: Mode,
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) size: usize,
    pub(crate) measured: Duration,
    pub(crate) warmup: Duration,
    pub(crate) idle: usize,
    pub(crate) greet: bool,
    pub(crate) pid: Option<u32>,
    pub(crate) count: Option<u64>,
    pub(crate) json: bool,
}

impl Args {
    /// `None` when help was asked for.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Args>> {
        let mut address = None;
        let mut args = Args {
            mode: Mode::Steady,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            connections: 50,
            size: 64,
            measured: Duration::from_secs(3),
            warmup: Duration::from_secs(1),
            idle: 0,
            greet: false,
            pid: None,
            count: None,
            json: false,
        };
        while let Some(word) = words.next() {
            let mut next = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--address" => address = Some(value(&word, next()?)?),
                "--connections" => args.connections = value(&word, next()?)?,
                "--size" => args.size = value(&word, next()?)?,
                "--seconds" => args.measured = seconds(&word, next()?)?,
                "--warmup" => args.warmup = seconds(&word, next()?)?,
                "--idle" => args.idle = value(&word, next()?)?,
                "--greet" => args.greet = true,
                "--pid" => args.pid = Some(value(&word, next()?)?),
                "--count" => args.count = Some(value(&word, next()?)?),
                "--churn" => args.mode = Mode::Churn,
                "--mixed-close" => args.mode = Mode::MixedClose,
                "--json" => args.json = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown option {word}\n{USAGE}").into()),
            }
        }
        args.address = address.ok_or("--address is missing")?;
        args.check()?;
        Ok(Some(args))
    }

    fn check(&self) -> Result<()> {
        if self.size == 0 {
            return Err("--size must be at least 1".into());
        }
        match self.mode {
            Mode::Steady if self.count.is_some() => {
                Err("--count goes with --churn or --mixed-close".into())
            }
            Mode::Churn | Mode::MixedClose if self.connections == 0 || self.idle > 0 => {
                Err("--churn and --mixed-close need --connections and know no --idle".into())
            }
            Mode::Steady | Mode::Churn | Mode::MixedClose => Ok(()),
        }
    }
}

fn value<T: FromStr<Err: Display>>(option: &str, word: String) -> Result<T> {
    word.parse()
        .map_err(|error| format!("{option} {word}: {error}").into())
}

fn seconds(option: &str, word: String) -> Result<Duration> {
    Duration::try_from_secs_f64(value(option, word)?)
        .map_err(|error| format!("{option}: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Args>> {
        Args::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn a_missing_address_is_an_error() {
        assert!(parse("--connections 3").is_err());
    }

    #[test]
    fn fractions_of_a_second_are_understood() -> Result<()> {
        let args = parse("--address 127.0.0.1:7 --seconds 0.25")?.ok_or("no arguments")?;
        assert_eq!(args.measured, Duration::from_millis(250));
        Ok(())
    }

    #[test]
    fn a_count_without_churn_is_an_error() {
        assert!(parse("--address 127.0.0.1:7 --count 5").is_err());
        assert!(parse("--address 127.0.0.1:7 --count 5 --churn").is_ok());
    }
}
