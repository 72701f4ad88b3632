//! One run of a hook.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{MemfdFlags, memfd_create},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
    time::Timespec,
};

use super::Hook;

/// What an error repeats of a hook's output, in bytes.
const MAX_OUTPUT: u64 = 4096;

/// Runs it to its end, with `state` as standard input; `as_root`: as user and group 0.
pub fn run(hook: &Hook, state: &[u8], as_root: bool) -> Result<()> {
    // Files in memory, unlike pipes, neither fill up nor are held open by what a hook leaves behind.
    let input = memory_file_with(state)?;
    let (output, errors) = (memory_file()?, memory_file()?);
    let mut command = Command::new(&hook.path);
    command.env_clear().stdin(input);
    command.stdout(output.try_clone().context("output")?).stderr(errors.try_clone().context("output")?);
    if let Some([name, rest @ ..]) = hook.args.as_deref() {
        command.arg0(name).args(rest);
    }
    for variable in hook.env.iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        if name.is_empty() {
            bail!("env: {variable:?} has no name");
        }
        command.env(name, value);
    }
    if as_root {
        command.gid(0).uid(0);
    }
    let mut child = command.spawn().context("start it")?;
    let status = match hook.timeout {
        None => child.wait().context("wait for it")?,
        Some(seconds) => wait(&mut child, seconds)?,
    };
    if !status.success() {
        bail!("{}, stdout: {}, stderr: {}", describe(status), text(output), text(errors));
    }
    Ok(())
}

pub(super) fn memory_file_with(text: &[u8]) -> Result<File> {
    let mut file = memory_file()?;
    file.write_all(text).and_then(|()| file.rewind()).context("write the state")?;
    Ok(file)
}

pub(super) fn memory_file() -> Result<File> {
    Ok(File::from(memfd_create("hook", MemfdFlags::CLOEXEC).context("memfd")?))
}

/// Waits for so many seconds, then kills it.
fn wait(child: &mut Child, seconds: i64) -> Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("a pid")?;
    let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(anyhow::Error::from).and_then(|fd| {
        let start = std::time::Instant::now();
        loop {
            let left = seconds.saturating_sub(i64::try_from(start.elapsed().as_secs())?);
            let timeout = Timespec { tv_sec: left.max(0), tv_nsec: 0 };
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
                Ok(n) => return Ok(n > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    });
    if !matches!(ended, Ok(true)) {
        let _ = child.kill();
    }
    let status = child.wait().context("wait for it")?;
    if !ended.context("wait for it")? {
        bail!("it ran past its timeout of {seconds} s and was killed");
    }
    Ok(status)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => "it ended".into(),
    }
}

pub(super) fn text(mut file: File) -> String {
    let mut bytes = Vec::new();
    // Less of it makes the error no less true.
    let _ = file.rewind().and_then(|()| file.take(MAX_OUTPUT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}
