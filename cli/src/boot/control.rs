//! What the VMM answers on its control socket: what it knows itself, and for the rest it asks the sentry.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use devices::{
    console::Streams,
    control::{Connection, Handler, Proxy, Reply, Request, Sentry, SignalTarget},
};
use sentry_abi::{config::Strace, counters};
use vmm::machine::{MachineHandle, Outcome};

use super::exec;

/// How long a start may take until the container's program runs.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long the sentry may take for what it answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What becomes known about the container's process, in this order: how its program began, and how it ended.
#[derive(Default)]
pub struct Progress {
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct Known {
    init: Option<(i32, String)>,
    status: Option<i32>,
}

impl Progress {
    /// `errno` 0: the program runs.
    pub fn init(&self, errno: i32, message: &str) {
        self.lock().init = Some((errno, message.to_owned()));
        self.changed.notify_all();
    }

    pub fn ended(&self, status: i32) {
        self.lock().status = Some(status);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, limit: Option<Duration>, enough: impl Fn(&Known) -> bool) -> Known {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut known = self.lock();
        while !enough(&known) {
            let left = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                left => left.unwrap_or(Duration::from_secs(3600)),
            };
            known = self.changed.wait_timeout(known, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        known.clone()
    }
}

pub struct Control {
    pub(super) id: String,
    machine: MachineHandle,
    progress: Arc<Progress>,
    pub(super) sentry: Sentry,
    pub(super) streams: Streams,
    strace_size: u32,
    start: Mutex<Start>,
    /// No task of the container runs.
    paused: Mutex<bool>,
    pub(super) proxies: Mutex<Vec<Proxy>>,
}

/// What answers are made of.
pub struct ControlParts {
    pub id: String,
    pub machine: MachineHandle,
    pub progress: Arc<Progress>,
    pub sentry: Sentry,
    pub streams: Streams,
    /// Bytes of a buffer that traces show.
    pub strace_size: u32,
    /// Lets the machine run; none when it does, and init is held in it.
    pub start: Option<Sender<()>>,
}

/// How far the container is.
enum Start {
    /// The machine does not run.
    Waits(Sender<()>),
    /// Init is held by the sentry.
    Held,
    Started,
}

impl Control {
    pub fn new(parts: ControlParts) -> Control {
        let ControlParts { id, machine, progress, sentry, streams, strace_size, start } = parts;
        Control {
            id,
            machine,
            progress,
            sentry,
            streams,
            strace_size,
            start: Mutex::new(start.map_or(Start::Held, Start::Waits)),
            paused: Mutex::default(),
            proxies: Mutex::default(),
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause(&self, request: &Request, pause: bool) -> Reply {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = self.ask(request);
        if reply == Reply::Done {
            *paused = pause;
        }
        reply
    }

    fn strace(&self, enabled: bool, only: Vec<String>) -> Reply {
        let strace = Strace { enabled, only, max_size: self.strace_size };
        match self.sentry.call(&sentry_abi::control::Request::Strace(strace), ANSWER_LIMIT) {
            Ok(_) => Reply::Done,
            Err(error) => Reply::error(libc::EIO, format!("{error:#}")),
        }
    }

    /// Whether the container's process is there, also if it has yet to be let go: hooks run beside it.
    pub(super) fn has_init(&self) -> bool {
        let known = self.progress.lock();
        known.init.as_ref().is_some_and(|(errno, _)| *errno == 0) && known.status.is_none()
    }

    fn start(&self) -> Reply {
        match std::mem::replace(&mut *self.phase(), Start::Started) {
            Start::Started => return Reply::error(libc::EBUSY, "the container was started before"),
            Start::Held => match self.sentry.call(&sentry_abi::control::Request::Start, ANSWER_LIMIT) {
                Ok(sentry_abi::control::Reply::Done) => return Reply::Done,
                Ok(other) => return Reply::error(libc::EPROTO, format!("the sentry answers {other:?}")),
                Err(error) => return Reply::error(libc::EIO, format!("{error:#}")),
            },
            Start::Waits(start) if start.send(()).is_err() => {
                return Reply::error(libc::ESRCH, "the sandbox is ending");
            }
            Start::Waits(_) => {}
        }
        let known = self.progress.wait(Some(START_LIMIT), |known| known.init.is_some() || known.status.is_some());
        match known.init {
            Some((errno, message)) if errno != 0 => Reply::error(errno, message),
            _ => Reply::Done,
        }
    }

    /// SIGKILL for init takes the whole sandbox with it, and this works whatever state the sentry is in.
    fn kill(&self, signo: i32) -> Reply {
        self.machine.stop(Outcome::Exited(signo));
        if let Start::Waits(start) = &*self.phase() {
            // The main thread waits for it.
            let _ = start.send(());
        }
        Reply::Done
    }

    fn phase(&self) -> MutexGuard<'_, Start> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_started(&self) -> bool {
        match &*self.phase() {
            Start::Started => true,
            Start::Held => false,
            // The command that made the sandbox starts it by another way.
            Start::Waits(_) => self.progress.lock().init.is_some(),
        }
    }

    /// A signal for a container that was not started: what stands for its process would take the default action.
    fn signal_unstarted(&self, signo: u32) -> Reply {
        match signo as i32 {
            0 | libc::SIGCHLD | libc::SIGCONT | libc::SIGURG | libc::SIGWINCH => Reply::Done,
            libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => Reply::Done,
            1..=64 => self.kill(signo as i32),
            _ => Reply::error(libc::EINVAL, format!("{signo} is not a signal")),
        }
    }

    fn ask(&self, request: &Request) -> Reply {
        match self.sentry.answer(request) {
            Some(Reply::Counters { counters }) => Reply::Counters { counters: with_own(&self.machine, counters) },
            Some(Reply::Stacks { text }) => {
                Reply::Stacks { text: format!("{text}\n{}", self.machine.flight_recorder()) }
            }
            Some(reply) => reply,
            None => Reply::error(libc::EOPNOTSUPP, format!("{request:?} is not known")),
        }
    }
}

/// The sentry's counters with the VMM's own in their places.
pub fn with_own(machine: &MachineHandle, mut all: Vec<(String, u64)>) -> Vec<(String, u64)> {
    for (counter, value) in machine.counters() {
        let name = counters::NAMES.get(counter as usize).copied().unwrap_or_default();
        match all.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => all.push((name.to_owned(), value)),
        }
    }
    all
}

impl Handler for Control {
    fn handle(&self, request: Request) -> Reply {
        match &request {
            Request::Start { container }
            | Request::Signal { container, .. }
            | Request::Wait { container }
            | Request::State { container }
            | Request::Ps { container }
            | Request::Exec { container, .. }
            | Request::WaitProcess { container, .. }
            | Request::Proxies { container }
            | Request::Pause { container }
            | Request::Resume { container }
                if *container != self.id =>
            {
                return Reply::error(libc::ENOENT, format!("container {container:?} is not in this sandbox"));
            }
            _ => {}
        }
        match request {
            Request::Hello { version } => Reply::Hello { version },
            Request::Start { .. } => self.start(),
            Request::Signal { target: SignalTarget::Init | SignalTarget::All, signo, .. }
                if signo == libc::SIGKILL as u32 =>
            {
                self.kill(libc::SIGKILL)
            }
            // Another process is a hook's, which ends alone.
            Request::Signal {
                target: SignalTarget::Init | SignalTarget::All | SignalTarget::Foreground,
                signo,
                ..
            } if !self.is_started() => self.signal_unstarted(signo),
            Request::Wait { .. } => match self.progress.wait(None, |known| known.status.is_some()).status {
                Some(status) => Reply::Exited { status },
                None => Reply::error(libc::EINTR, "the sandbox is ending"),
            },
            Request::State { .. } => {
                let known = self.progress.lock().clone();
                let started = self.is_started();
                Reply::State {
                    started,
                    running: started && known.status.is_none(),
                    paused: self.is_paused(),
                    status: known.status,
                }
            }
            Request::WaitProcess { pid, .. } => exec::wait(&self.sentry, pid),
            Request::Proxies { .. } => {
                Reply::Proxies { proxies: self.proxies.lock().unwrap_or_else(PoisonError::into_inner).clone() }
            }
            Request::Pause { .. } => self.pause(&request, true),
            Request::Resume { .. } => self.pause(&request, false),
            Request::Strace { enabled, only } => self.strace(enabled, only),
            Request::Shutdown => self.kill(libc::SIGKILL),
            other => self.ask(&other),
        }
    }

    fn exec(&self, request: Request, fds: Vec<OwnedFd>, connection: Connection) {
        exec::serve(self, request, fds, connection);
    }
}
