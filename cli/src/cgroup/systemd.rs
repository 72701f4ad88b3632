//! Whether systemd, which owns the groups that engines name `slice:prefix:name`, can be asked for one.

use std::path::Path;

use anyhow::{Result, bail};

/// Present when systemd is the service manager (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

pub fn check(slice: &str, unit: &str) -> Result<()> {
    if !Path::new(BOOTED).is_dir() {
        bail!(
            "--systemd-cgroup: cannot make {unit} in {slice}: systemd does not run here ({BOOTED} is missing); have the \
             engine use the cgroupfs driver"
        );
    }
    bail!(
        "--systemd-cgroup: cannot make {unit} in {slice}: units of systemd are not supported yet; have the engine use the \
         cgroupfs driver"
    )
}
