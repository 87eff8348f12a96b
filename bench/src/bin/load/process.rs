//! What a process costs, read from `/proc/PID`: the server, and this client for comparison.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Result;

pub(crate) struct Process {
    folder: PathBuf,
}

impl Process {
    pub(crate) fn new(pid: u32) -> Result<Process> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        if !folder.join("task").is_dir() {
            return Err(format!("no process {pid}").into());
        }
        Ok(Process { folder })
    }

    /// CPU time of all living threads. Nanoseconds from schedstat: `stat` counts in ticks of 10 ms.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for task in fs::read_dir(self.folder.join("task"))? {
            // A thread may end between the listing and the reading.
            if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
                let running = text.split(' ').next().ok_or("empty schedstat")?;
                nanos += running.parse::<u64>()?;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Resident bytes. From smaps_rollup, which is counted on reading: the figures of `statm` may
    /// lag behind by some dozens of pages a core.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let text = fs::read_to_string(self.folder.join("smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.ok_or("no Rss in smaps_rollup")?.parse::<u64>()? * 1024)
    }

    pub(crate) fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(self.folder.join("fd"))?.count())
    }

    /// Waits until the number of descriptors satisfies `enough`; the last number seen if it never
    /// does within the limit.
    pub(crate) fn wait_for_descriptors(
        &self,
        limit: Duration,
        enough: impl Fn(usize) -> bool,
    ) -> Result<usize> {
        let deadline = Instant::now() + limit;
        loop {
            let found = self.descriptors()?;
            if enough(found) || Instant::now() >= deadline {
                return Ok(found);
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// CPU time of the whole machine: everything but idle, including what a hypervisor kept for others.
/// In ticks of 10 ms, so good for a share of a core over a second, not for more.
pub(crate) fn machine_cpu() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().ok_or("empty /proc/stat")?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    // user nice system IDLE IOWAIT irq softirq steal; guest time is in user already.
    let [user, nice, system, _, _, irq, softirq, steal, ..] = ticks[..] else {
        return Err("short /proc/stat".into());
    };
    Ok(Duration::from_millis(
        10 * (user + nice + system + irq + softirq + steal),
    ))
}
