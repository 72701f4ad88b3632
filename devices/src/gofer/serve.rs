//! The gofer's loop: one thread, one queue.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;

use super::{
    link::{Message, receive},
    server::Server,
};
use crate::virtio::{DeviceMemory, DeviceQueue, QueueError, Spinner, device_memory, event_descriptor};

/// A directory or file below which the sandbox may work.
#[derive(Debug)]
pub struct Root {
    /// O_PATH.
    pub fd: OwnedFd,
    pub readonly: bool,
}

pub struct GoferConfig {
    /// Node ids 1, 2, ...: the index in the sandbox's mounts.
    pub roots: Vec<Root>,
    /// The memfd of device memory.
    pub device_fd: OwnedFd,
    /// Doorbell of the queue and completions towards the sentry; both non-blocking.
    pub kick: EventFd,
    pub call: EventFd,
    /// SOCK_SEQPACKET towards the VMM ([`super::GoferBackend`], and what receives files for the window).
    pub vmm_socket: OwnedFd,
}

/// Requests served before the socket is looked at again.
const BATCH: usize = 64;

/// Serves until the VMM closes its end. Needs /proc/self/fd when it starts; afterwards the process may lose its root.
pub fn serve(config: GoferConfig) -> Result<()> {
    let memory = device_memory(config.device_fd.as_fd())?;
    drop(config.device_fd);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        log::warn!("gofer: the limit of open files stays at {:?}: {error}", limit.current);
    }
    // Modes are the sentry's to decide.
    rustix::process::umask(rustix::fs::Mode::empty());
    let roots = config.roots.into_iter().map(|root| (root.fd, root.readonly));
    let server = Server::new(roots, config.vmm_socket).context("gofer roots (is /proc mounted?)")?;
    Loop { memory, server, kick: config.kick, call: config.call, queue: None, spinner: Spinner::default() }.run()
}

struct Loop {
    memory: DeviceMemory,
    server: Server,
    kick: EventFd,
    call: EventFd,
    queue: Option<DeviceQueue>,
    spinner: Spinner,
}

impl Loop {
    fn run(&mut self) -> Result<()> {
        loop {
            match self.serve_queue() {
                Ok(()) => {}
                Err(error) => {
                    // The sandbox has broken its own queue; it gets no more files.
                    log::error!("gofer: {error}");
                    self.queue = None;
                }
            }
            let slept = Instant::now();
            let ready = self.sleep().context("poll")?;
            self.spinner.woken(slept.elapsed());
            if ready {
                match receive(self.server.socket()) {
                    Message::Activate(setup, features) => {
                        let call = self.call.try_clone().context("eventfd")?;
                        let queue = DeviceQueue::new(self.memory.clone(), setup, features, call);
                        self.queue = queue.inspect_err(|error| log::error!("gofer: {error}")).ok();
                    }
                    Message::Reset => self.queue = None,
                    Message::End => return Ok(()),
                    Message::None => {}
                }
            }
        }
    }

    /// Serves what is there, and what comes within a few microseconds.
    fn serve_queue(&mut self) -> Result<(), QueueError> {
        let Some(queue) = &mut self.queue else { return Ok(()) };
        let mut served = 0;
        loop {
            while let Some(mut chain) = queue.pop()? {
                self.server.handle(&mut chain)?;
                queue.complete(chain)?;
                served += 1;
                if served == BATCH {
                    // Look at the socket, without sleeping: the doorbell is rung for ourselves.
                    let _ = self.kick.write(1);
                    return Ok(());
                }
            }
            if self.spinner.spin(|| queue.pending())? {
                continue;
            }
            if !queue.arm()? {
                return Ok(());
            }
        }
    }

    /// Sleeps until there is something to do; true when the VMM has sent something.
    fn sleep(&mut self) -> rustix::io::Result<bool> {
        let socket = self.server.socket();
        let kick = event_descriptor(&self.kick);
        let mut fds = [PollFd::new(&kick, PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let (kicked, socket) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if kicked {
            // Empty when another wake-up has taken it: nothing to do.
            let _ = self.kick.read();
        }
        Ok(socket)
    }
}
