//! Signals that the VMM of a detached container gets from the host, which knows the container by this process: they are the
//! container's. Its terminal's keys and changes of size arrive the same way.

use std::sync::Arc;

use anyhow::{Context, Result};
use devices::control::{Handler, Reply, Request, SignalTarget};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::control::Control;
use crate::sandbox::signals::Signals;

const INIT: i32 = 1;

pub fn spawn(signals: Signals, control: Arc<Control>, terminal: bool) -> Result<()> {
    std::thread::Builder::new()
        .name("signals".into())
        .stack_size(128 << 10)
        .spawn(move || pass_on(signals, &control, terminal))
        .context("signal thread")?;
    Ok(())
}

fn pass_on(mut signals: Signals, control: &Control, terminal: bool) {
    loop {
        match poll(&mut [PollFd::new(&signals, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                log::error!("signals: {error}");
                return;
            }
        }
        while let Some(signo) = signals.next() {
            let keys = matches!(signo as i32, libc::SIGINT | libc::SIGQUIT | libc::SIGTSTP);
            let request = if signo as i32 == libc::SIGWINCH {
                Request::WindowChanged { pid: INIT }
            } else {
                let target = if terminal && keys { SignalTarget::Foreground } else { SignalTarget::Init };
                Request::Signal { container: control.id.clone(), target, signo }
            };
            if let Reply::Error { message, .. } = control.handle(request) {
                log::debug!("signal {signo}: {message}");
            }
        }
    }
}
