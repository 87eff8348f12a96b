//! What a run found, as text and as one line of JSON.

use std::time::{Duration, Instant};

use crate::Result;
use crate::args::Mode;
use crate::histogram::Histogram;
use crate::process::{Process, machine_cpu};

/// How long a server may take to close what the client has closed.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) struct Report {
    pub(crate) mode: Mode,
    pub(crate) connections: usize,
    pub(crate) idle: usize,
    pub(crate) size: usize,
    /// Requests; connections when each lives for one request; MiB of a flow.
    pub(crate) count: u64,
    pub(crate) fewest_per_connection: u64,
    pub(crate) latency: Histogram,
    pub(crate) measured: Measured,
    pub(crate) server: Option<ServerCost>,
}

/// The measured window: how long it took, and the CPU time used meanwhile.
pub(crate) struct Measured {
    elapsed: Duration,
    client: Duration,
    machine: Duration,
}

/// Measures the client, and the server if its process is known.
pub(crate) struct Meter {
    server: Option<(Process, ServerCost)>,
}

impl Meter {
    /// Before the first connection.
    pub(crate) fn open(pid: Option<u32>) -> Result<Meter> {
        let before = |pid| -> Result<_> {
            let server = Process::new(pid)?;
            let cost = ServerCost::before(&server)?;
            Ok((server, cost))
        };
        Ok(Meter {
            server: pid.map(before).transpose()?,
        })
    }

    pub(crate) fn server(&self) -> Option<&Process> {
        self.server.as_ref().map(|(server, _)| server)
    }

    /// Runs `load`, which is told when it began.
    pub(crate) fn window(&mut self, load: impl FnOnce(Instant) -> Result<()>) -> Result<Measured> {
        let client = Process::new(std::process::id())?;
        let (client_before, machine_before) = (client.cpu()?, machine_cpu()?);
        if let Some((server, cost)) = &mut self.server {
            cost.window_begins(server)?;
        }
        let began = Instant::now();
        load(began)?;
        let elapsed = began.elapsed();
        if let Some((server, cost)) = &mut self.server {
            cost.window_ends(server)?;
        }
        Ok(Measured {
            elapsed,
            client: client.cpu()?.saturating_sub(client_before),
            machine: machine_cpu()?.saturating_sub(machine_before),
        })
    }

    /// After the last connection.
    pub(crate) fn close(self) -> Result<Option<ServerCost>> {
        let Some((server, mut cost)) = self.server else {
            return Ok(None);
        };
        cost.after(&server)?;
        Ok(Some(cost))
    }
}

/// The server before the first connection, around the measured window, and after the last.
pub(crate) struct ServerCost {
    pub(crate) descriptors_before: usize,
    descriptors_after: usize,
    resident_before: u64,
    resident_open: u64,
    resident_after: u64,
    cpu_at_begin: Duration,
    cpu: Duration,
}

impl ServerCost {
    fn before(server: &Process) -> Result<ServerCost> {
        let resident_before = server.resident_bytes()?;
        Ok(ServerCost {
            descriptors_before: server.descriptors()?,
            descriptors_after: 0,
            resident_before,
            resident_open: resident_before,
            resident_after: resident_before,
            cpu_at_begin: Duration::ZERO,
            cpu: Duration::ZERO,
        })
    }

    fn window_begins(&mut self, server: &Process) -> Result<()> {
        self.cpu_at_begin = server.cpu()?;
        Ok(())
    }

    fn window_ends(&mut self, server: &Process) -> Result<()> {
        self.cpu = server.cpu()?.saturating_sub(self.cpu_at_begin);
        self.resident_open = server.resident_bytes()?;
        Ok(())
    }

    fn after(&mut self, server: &Process) -> Result<()> {
        let before = self.descriptors_before;
        self.descriptors_after = server.wait_for_descriptors(SETTLE, |found| found <= before)?;
        self.resident_after = server.resident_bytes()?;
        Ok(())
    }
}

impl Report {
    pub(crate) fn text(&self) -> String {
        let unit = match self.mode {
            Mode::Churn | Mode::MixedClose => "connections",
            Mode::Upload | Mode::Download => "MiB",
            _ => "requests",
        };
        let mut text = format!(
            "{}: {} connections, {} idle, {} bytes, {:.2} s, every byte right\n\
             {unit}       {}\n\
             per second     {:.0}\n\
             latency us     p50 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}\n\
             client's core  {:.0} %",
            self.mode.name(),
            self.connections,
            self.idle,
            self.size,
            self.measured.elapsed.as_secs_f64(),
            self.count,
            self.per_second(),
            self.latency.quantile_micros(0.5),
            self.latency.quantile_micros(0.99),
            self.latency.quantile_micros(0.999),
            self.latency.max_micros(),
            self.client_percent(),
        );
        if let Some(server) = &self.server {
            text += &format!(
                "\nothers' cores  {:.0} %\n\
                 server's CPU   {:.2} us each, {:.1} ms in all\n\
                 descriptors    {} before, {} after\n\
                 resident KiB   {} before, {} under load, {} after",
                self.others_percent().unwrap_or(0.0),
                self.cpu_micros(server),
                server.cpu.as_secs_f64() * 1e3,
                server.descriptors_before,
                server.descriptors_after,
                server.resident_before / 1024,
                server.resident_open / 1024,
                server.resident_after / 1024,
            );
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        let mut fields = vec![
            format!("\"mode\":\"{}\"", self.mode.name()),
            format!("\"connections\":{}", self.connections),
            format!("\"idle\":{}", self.idle),
            format!("\"size\":{}", self.size),
            format!("\"seconds\":{:.6}", self.measured.elapsed.as_secs_f64()),
            format!("\"count\":{}", self.count),
            format!("\"per_second\":{:.3}", self.per_second()),
            format!("\"p50_us\":{:.3}", self.latency.quantile_micros(0.5)),
            format!("\"p99_us\":{:.3}", self.latency.quantile_micros(0.99)),
            format!("\"p999_us\":{:.3}", self.latency.quantile_micros(0.999)),
            format!("\"max_us\":{:.3}", self.latency.max_micros()),
            format!("\"fewest_per_connection\":{}", self.fewest_per_connection),
            format!("\"client_core_percent\":{:.1}", self.client_percent()),
        ];
        if let Some(server) = &self.server {
            fields.extend([
                format!(
                    "\"others_core_percent\":{:.1}",
                    self.others_percent().unwrap_or(0.0)
                ),
                format!("\"cpu_us\":{:.4}", self.cpu_micros(server)),
                format!("\"cpu_ms\":{:.3}", server.cpu.as_secs_f64() * 1e3),
                format!("\"descriptors_before\":{}", server.descriptors_before),
                format!("\"descriptors_after\":{}", server.descriptors_after),
                format!("\"resident_before\":{}", server.resident_before),
                format!("\"resident_open\":{}", server.resident_open),
                format!("\"resident_after\":{}", server.resident_after),
            ]);
        }
        format!("{{{}}}", fields.join(","))
    }

    fn per_second(&self) -> f64 {
        self.count as f64 / self.measured.elapsed.as_secs_f64()
    }

    fn client_percent(&self) -> f64 {
        self.core_percent(self.measured.client)
    }

    /// What neither the server nor this client used: other programs on the machine. More than a few
    /// percent says that the run was disturbed.
    fn others_percent(&self) -> Option<f64> {
        let ours = self.measured.client + self.server.as_ref()?.cpu;
        Some(self.core_percent(self.measured.machine.saturating_sub(ours)))
    }

    fn core_percent(&self, cpu: Duration) -> f64 {
        100.0 * cpu.as_secs_f64() / self.measured.elapsed.as_secs_f64()
    }

    fn cpu_micros(&self, server: &ServerCost) -> f64 {
        server.cpu.as_secs_f64() * 1e6 / self.count.max(1) as f64
    }
}
