//! Processes that are started in the running container: each is stood for by a connection on the control socket.

use std::{os::fd::OwnedFd, sync::PoisonError, time::Duration};

use anyhow::{Context, Result, ensure};
use devices::{
    console::{Prepared, Stream},
    control::{Connection, Handler, Proxy, Reply, Request, Sentry, SignalTarget},
};
use sentry_abi::{config::ProcessConfig, control};

use super::control::Control;

/// How long it may take until the program runs.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Starts the process and serves its connection until one of them ends.
pub fn serve(control: &Control, request: Request, fds: Vec<OwnedFd>, mut connection: Connection) {
    let Request::Exec { container, process, streams, proxy } = request else { return };
    let started = if container != control.id {
        Reply::error(libc::ENOENT, format!("container {container:?} is not in this sandbox"))
    } else if !control.has_init() {
        Reply::error(libc::ESRCH, "cannot exec in a container that does not run")
    } else if control.is_paused() {
        Reply::error(libc::EBUSY, "cannot exec in a paused container")
    } else {
        start(control, *process, &streams, fds).unwrap_or_else(|error| Reply::error(libc::EIO, format!("{error:#}")))
    };
    let Reply::Started { pid } = started else {
        // Who asked may have given up.
        let _ = connection.send(&started);
        return;
    };
    let proxies = || control.proxies.lock().unwrap_or_else(PoisonError::into_inner);
    proxies().push(Proxy { host: proxy, pid });
    if let Err(error) = stand(control, pid, &started, connection) {
        log::warn!("exec {pid}: {error:#}");
        kill(control, pid);
    }
    proxies().retain(|p| p.pid != pid);
}

/// `Started`, or what is wrong.
fn start(control: &Control, mut process: ProcessConfig, how: &[Prepared], fds: Vec<OwnedFd>) -> Result<Reply> {
    let count = process.stdio.len();
    ensure!(count == fds.len() && count == how.len(), "{count} streams, {} descriptors", fds.len());
    let streams = fds.into_iter().zip(how).map(|(fd, how)| Stream::prepared(fd, *how)).collect::<Result<Vec<_>, _>>();
    let indices = control.streams.add(streams.context("streams")?)?;
    for (stdio, index) in process.stdio.iter_mut().zip(&indices) {
        stdio.index = *index;
    }
    let reply = control.sentry.call(&control::Request::Exec { process }, START_LIMIT);
    Ok(match reply {
        Ok(control::Reply::Started { pid }) => Reply::Started { pid },
        Ok(control::Reply::Failed { errno, message }) => Reply::error(errno, message),
        Ok(control::Reply::Error(errno)) => {
            // The sentry has not taken them.
            control.streams.remove(indices);
            let error = std::io::Error::from_raw_os_error(errno);
            Reply::error(errno, format!("start a process in the container: {error}"))
        }
        Ok(other) => Reply::error(libc::EPROTO, format!("the sentry answers {other:?}")),
        Err(error) => Reply::error(libc::EIO, format!("{error:#}")),
    })
}

/// From the start to the end. The connection's end before that of the process kills the process.
fn stand(control: &Control, pid: i32, started: &Reply, mut connection: Connection) -> Result<()> {
    let mut teller = connection.try_clone().context("connection")?;
    let sentry = control.sentry.clone();
    let waiter = std::thread::Builder::new()
        .name("exec".into())
        .stack_size(256 << 10)
        .spawn(move || {
            let ended = wait(&sentry, pid);
            // The proxy may be gone.
            let _ = teller.send(&ended);
            teller.end();
        })
        .context("thread")?;
    // A proxy that is gone is seen below.
    let _ = connection.send(started);
    loop {
        match connection.receive() {
            Ok(Some(request @ Request::WindowChanged { .. })) => drop(control.handle(request)),
            Ok(Some(Request::Signal { target, signo, .. })) => {
                let target = match target {
                    SignalTarget::Foreground | SignalTarget::ForegroundOf(_) => SignalTarget::ForegroundOf(pid),
                    _ => SignalTarget::Pid(pid),
                };
                signal(control, target, signo);
            }
            Ok(Some(other)) => log::debug!("exec {pid}: ignored: {other:?}"),
            Ok(None) | Err(_) => break,
        }
    }
    if !waiter.is_finished() {
        kill(control, pid);
    }
    let _ = waiter.join();
    Ok(())
}

fn kill(control: &Control, pid: i32) {
    signal(control, SignalTarget::Pid(pid), libc::SIGKILL as u32);
}

fn signal(control: &Control, target: SignalTarget, signo: u32) {
    let request = Request::Signal { container: control.id.clone(), target, signo };
    if let Reply::Error { message, .. } = control.handle(request) {
        log::debug!("exec: {message}");
    }
}

/// Waits for the end of process `pid`.
pub fn wait(sentry: &Sentry, pid: i32) -> Reply {
    match sentry.wait(pid) {
        Ok(control::Reply::Exited(status)) => Reply::Exited { status: status as i32 },
        Ok(control::Reply::Error(errno)) => Reply::error(errno, format!("process {pid} is not in the container")),
        Ok(other) => Reply::error(libc::EPROTO, format!("the sentry answers {other:?}")),
        Err(error) => Reply::error(libc::EIO, format!("{error:#}")),
    }
}
