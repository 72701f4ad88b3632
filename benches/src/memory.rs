//! What MemAvailable loses to ten sandboxes.

use std::{fs, thread::sleep, time::Duration};

use anyhow::{Context, Result};

use crate::environment::Environment;

fn available_kb() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    line.trim().trim_end_matches(" kB").parse().context("MemAvailable")
}

/// The average of a few readings: other programs run as well.
fn settled() -> Result<f64> {
    sleep(Duration::from_millis(700));
    let mut sum = 0.0;
    for _ in 0..10 {
        sum += available_kb()?;
        sleep(Duration::from_millis(30));
    }
    Ok(sum / 10.0)
}

/// Megabytes each of ten sleeping containers takes.
pub fn of_ten(environment: &Environment) -> Result<f64> {
    // One stays for the whole time, so that what all share is not counted.
    let _shared = environment.start_sleeping()?;
    let before = settled()?;
    let ten = (0..10).map(|_| environment.start_sleeping()).collect::<Result<Vec<_>>>()?;
    let after = settled()?;
    drop(ten);
    Ok((before - after) / 1024.0 / 10.0)
}
