//! What a run counted, by name: as text, and as one line of JSON.

use std::fmt::Write;
use std::time::Duration;

use crate::args::Mode;
use crate::histogram::Histogram;

pub(crate) struct Findings {
    mode: Mode,
    figures: Vec<(String, f64)>,
}

impl Findings {
    pub(crate) fn new(mode: Mode) -> Findings {
        let figures = Vec::new();
        Findings { mode, figures }
    }

    pub(crate) fn count(mut self, name: &str, value: u64) -> Findings {
        self.figures.push((name.into(), value as f64));
        self
    }

    pub(crate) fn seconds(mut self, name: &str, value: Duration) -> Findings {
        self.figures
            .push((format!("{name}_s"), value.as_secs_f64()));
        self
    }

    /// The shape of a latency, in milliseconds. With `name` "echo": echo_p50_ms and so on.
    pub(crate) fn latency(mut self, name: &str, of: &Histogram) -> Findings {
        let milliseconds = [
            ("p50", of.quantile_micros(0.5)),
            ("p99", of.quantile_micros(0.99)),
            ("p999", of.quantile_micros(0.999)),
            ("max", of.max_micros()),
        ];
        self.figures
            .push((format!("{name}_count"), of.total() as f64));
        for (which, micros) in milliseconds {
            self.figures
                .push((format!("{name}_{which}_ms"), micros / 1e3));
        }
        self
    }

    pub(crate) fn json(&self) -> String {
        let mut text = format!("{{\"mode\":\"{}\"", self.mode.name());
        for (name, value) in &self.figures {
            // Writing to a String cannot fail.
            let _ = write!(text, ",\"{name}\":{}", number(*value));
        }
        text + "}"
    }

    pub(crate) fn text(&self) -> String {
        let mut text = self.mode.name().to_string();
        for (name, value) in &self.figures {
            let _ = write!(text, "\n{name:20} {}", number(*value));
        }
        text
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
