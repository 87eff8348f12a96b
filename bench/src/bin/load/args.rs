//! The command line.

use std::fmt::Display;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::Result;
use crate::connection::PATIENCE;

pub(crate) const USAGE: &str = "\
usage: load --address HOST:PORT [options]
  --connections N   busy connections (default 50)
  --size BYTES      of one message (default 64)
  --seconds S       measured time (default 3)
  --warmup S        the same load before it, not counted (default 1)
  --idle M          further connections that stay silent; each must echo once at the end
  --greet           the idle ones echo once before they fall silent, too
  --pid PID         of the server: its CPU, resident memory and descriptors are reported
  --pipeline N      so many messages are under way on each connection, without waiting for answers
  --upload          one way, as much as goes in; --download: as much as comes out. Not an echo: see
                    bench/README.md
  --churn           connect, one echo, close, and again
  --mixed-close     the same, closing in turn by FIN, by reset, by half-close, with unread data
  --count N         end --churn or --mixed-close after N connections instead of --seconds
  --rounds R        every connection echoes R times, --window W of them (default 100) at a time
  --crowd           all connect at once, echo once, and are held for --hold S seconds, or with
                    --hold-all until the last has had its echo
  --dribble         a byte every --interval S on each connection, until the server closes it
  --storm           resets, half-opens and abandoned writes, one after the other
  --hoard           send --total BYTES on each, read nothing for --hold S seconds, then read it all
  --reconnect       an echo every --interval S on each connection, and a new one for each that fails
  --probe           connect, one echo, close, every --interval S; and an echo on one that stays,
                    unless there are --visits-only
  --interval S      default 0.02
  --patience S      no progress for so long is a failure (default 10)
  --until-told      go on until stdin ends instead of for --seconds
  --json            one line of JSON instead of text";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Steady,
    Pipeline,
    Upload,
    Download,
    Churn,
    MixedClose,
    Rounds,
    Crowd,
    Dribble,
    Storm,
    Hoard,
    Reconnect,
    Probe,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Steady => "steady",
            Mode::Pipeline => "pipeline",
            Mode::Upload => "upload",
            Mode::Download => "download",
            Mode::Churn => "churn",
            Mode::MixedClose => "mixed-close",
            Mode::Rounds => "rounds",
            Mode::Crowd => "crowd",
            Mode::Dribble => "dribble",
            Mode::Storm => "storm",
            Mode::Hoard => "hoard",
            Mode::Reconnect => "reconnect",
            Mode::Probe => "probe",
        }
    }
}

#[derive(Clone)]
pub(crate) struct Args {
    pub(crate) mode: Mode,
    pub(crate) address: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) size: usize,
    pub(crate) measured: Duration,
    pub(crate) warmup: Duration,
    pub(crate) depth: usize,
    pub(crate) idle: usize,
    pub(crate) greet: bool,
    pub(crate) pid: Option<u32>,
    pub(crate) count: Option<u64>,
    pub(crate) rounds: u32,
    pub(crate) window: usize,
    pub(crate) hold: Duration,
    pub(crate) hold_all: bool,
    pub(crate) total: u64,
    pub(crate) interval: Duration,
    pub(crate) patience: Duration,
    pub(crate) until_told: bool,
    pub(crate) visits_only: bool,
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
            depth: 0,
            idle: 0,
            greet: false,
            pid: None,
            count: None,
            rounds: 0,
            window: 100,
            hold: Duration::ZERO,
            hold_all: false,
            total: 24 * 1024 * 1024,
            interval: Duration::from_millis(20),
            patience: PATIENCE,
            until_told: false,
            visits_only: false,
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
                "--pipeline" => {
                    args.mode = Mode::Pipeline;
                    args.depth = value(&word, next()?)?;
                }
                "--upload" => args.mode = Mode::Upload,
                "--download" => args.mode = Mode::Download,
                "--churn" => args.mode = Mode::Churn,
                "--mixed-close" => args.mode = Mode::MixedClose,
                "--rounds" => {
                    args.mode = Mode::Rounds;
                    args.rounds = value(&word, next()?)?;
                }
                "--window" => args.window = value(&word, next()?)?,
                "--crowd" => args.mode = Mode::Crowd,
                "--hold" => args.hold = seconds(&word, next()?)?,
                "--hold-all" => args.hold_all = true,
                "--dribble" => args.mode = Mode::Dribble,
                "--storm" => args.mode = Mode::Storm,
                "--hoard" => args.mode = Mode::Hoard,
                "--total" => args.total = value(&word, next()?)?,
                "--reconnect" => args.mode = Mode::Reconnect,
                "--probe" => args.mode = Mode::Probe,
                "--interval" => args.interval = seconds(&word, next()?)?,
                "--patience" => args.patience = seconds(&word, next()?)?,
                "--visits-only" => args.visits_only = true,
                "--until-told" => args.until_told = true,
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
        if self.count.is_some() && !matches!(self.mode, Mode::Churn | Mode::MixedClose) {
            return Err("--count goes with --churn or --mixed-close".into());
        }
        if self.mode == Mode::Steady {
            return Ok(());
        }
        if self.connections == 0 || self.idle > 0 {
            return Err("only a steady load knows --idle and no --connections".into());
        }
        if self.window == 0 || self.interval.is_zero() {
            return Err("--window and --interval must be positive".into());
        }
        if self.mode == Mode::Pipeline && self.depth == 0 {
            return Err("--pipeline must be at least 1".into());
        }
        Ok(())
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
