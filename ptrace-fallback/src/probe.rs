//! Whether ptrace works here.

use anyhow::{Context, Result, ensure};

use crate::host::fork;

/// Tries the operations the backend stands on with a throw-away child; the error says what is missing. Costs about a
/// millisecond.
pub fn probe() -> Result<()> {
    let ok = fork::probe_child()
        .context("ptrace is not usable here (seccomp filter, or /proc/sys/kernel/yama/ptrace_scope?)")?;
    ensure!(ok, "the host's ptrace does not report system calls (Linux 5.3 or later is needed)");
    Ok(())
}
