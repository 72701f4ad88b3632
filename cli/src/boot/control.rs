//! What the VMM answers on its control socket: what it knows itself, and for the rest it asks the sentry.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use devices::control::{Handler, Reply, Request, SignalTarget};
use sentry_abi::{control as abi, counters};
use vmm::machine::{MachineHandle, Outcome};

/// How long a start may take until the container's program runs.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The way to the sentry.
pub trait Sentry: Send + Sync {
    fn call(&self, request: abi::Request) -> anyhow::Result<abi::Reply>;
}

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
    pub fn init(&self, errno: i32, what: &str) {
        self.lock().init = Some((errno, what.to_owned()));
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
    id: String,
    machine: MachineHandle,
    progress: Arc<Progress>,
    sentry: Arc<dyn Sentry>,
    start: Mutex<Option<Sender<()>>>,
}

impl Control {
    pub fn new(
        id: String,
        machine: MachineHandle,
        progress: Arc<Progress>,
        sentry: Arc<dyn Sentry>,
        start: Sender<()>,
    ) -> Control {
        Control { id, machine, progress, sentry, start: Mutex::new(Some(start)) }
    }

    fn start(&self) -> Reply {
        let Some(start) = self.start.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Reply::error(libc::EBUSY, "the container was started before");
        };
        if start.send(()).is_err() {
            return Reply::error(libc::ESRCH, "the sandbox is ending");
        }
        let known = self.progress.wait(Some(START_LIMIT), |known| known.init.is_some() || known.status.is_some());
        match known.init {
            Some((errno, what)) if errno != 0 => Reply::error(errno, what),
            _ => Reply::Done,
        }
    }

    fn signal(&self, target: SignalTarget, signo: u32) -> Reply {
        // Its init takes the whole sandbox with it, and this works whatever state the sentry is in.
        if signo == libc::SIGKILL as u32 && matches!(target, SignalTarget::Init | SignalTarget::All) {
            self.machine.stop(Outcome::Exited(libc::SIGKILL));
            return Reply::Done;
        }
        let what = format!("signal {signo}");
        self.ask(abi::Request::Signal { container: self.id.clone(), target: target.into(), signo }, &what)
    }

    fn ask(&self, request: abi::Request, what: &str) -> Reply {
        match self.sentry.call(request) {
            Ok(abi::Reply::Done) => Reply::Done,
            Ok(abi::Reply::Error(errno)) => {
                Reply::error(errno, format!("{what}: {}", std::io::Error::from_raw_os_error(errno)))
            }
            Ok(abi::Reply::Ps(processes)) => Reply::Ps { processes },
            Ok(abi::Reply::Stacks(text)) => {
                Reply::Stacks { text: format!("{text}\n{}", self.machine.flight_recorder()) }
            }
            Ok(abi::Reply::Counters(values)) => Reply::Counters { counters: self.counters(&values) },
            Err(error) => Reply::error(libc::EIO, format!("{what}: {error:#}")),
        }
    }

    /// The sentry's counters and the VMM's own.
    fn counters(&self, sentry: &[u64]) -> Vec<(String, u64)> {
        let mut values: Vec<u64> = (0..counters::COUNT).map(|i| sentry.get(i).copied().unwrap_or(0)).collect();
        for (counter, value) in self.machine.counters() {
            values[counter as usize] = value;
        }
        counters::NAMES.iter().map(|name| (*name).to_owned()).zip(values).collect()
    }
}

impl Handler for Control {
    fn handle(&self, request: Request) -> Reply {
        match &request {
            Request::Start { container }
            | Request::Signal { container, .. }
            | Request::Wait { container }
            | Request::State { container }
                if *container != self.id =>
            {
                return Reply::error(libc::ENOENT, format!("container {container:?} is not in this sandbox"));
            }
            _ => {}
        }
        match request {
            Request::Hello { version } => Reply::Hello { version },
            Request::Start { .. } => self.start(),
            Request::Signal { target, signo, .. } => self.signal(target, signo),
            Request::Wait { .. } => match self.progress.wait(None, |known| known.status.is_some()).status {
                Some(status) => Reply::Exited { status },
                None => Reply::error(libc::EINTR, "the sandbox is ending"),
            },
            Request::State { .. } => {
                let known = self.progress.lock().clone();
                let started = self.start.lock().unwrap_or_else(PoisonError::into_inner).is_none() || known.init.is_some();
                Reply::State { started, running: started && known.status.is_none(), status: known.status }
            }
            Request::Ps { container } => self.ask(abi::Request::Ps { container }, "ps"),
            Request::Counters => self.ask(abi::Request::Counters, "counters"),
            Request::Stacks => self.ask(abi::Request::Stacks, "stacks"),
            Request::WindowChanged => self.ask(abi::Request::WindowChanged, "window size"),
            Request::Shutdown => {
                self.machine.stop(Outcome::Exited(libc::SIGKILL));
                Reply::Done
            }
        }
    }
}
