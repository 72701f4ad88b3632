//! The VMM's side of the control socket: one thread accepts, one serves each connection.

use std::{
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};

use super::{
    client::short_path,
    protocol::{PROTOCOL_VERSION, Reply, Request, receive, send},
    socket::Collector,
};

/// Connections served at a time; each has a thread.
const MAX_CONNECTIONS: usize = 1024;

/// What answers requests. Called from several threads; `Wait` may block its caller.
pub trait Handler: Send + Sync {
    fn handle(&self, request: Request) -> Reply;

    /// Starts a process that `connection` stands for, and serves the connection to its end.
    fn exec(&self, request: Request, fds: Vec<OwnedFd>, connection: Connection);
}

/// A connection that has been greeted. Replies may be sent by one thread while another one receives.
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// The next request; none at the end of the stream.
    pub fn receive(&mut self) -> std::io::Result<Option<Request>> {
        receive(&mut self.stream)
    }

    pub fn send(&mut self, reply: &Reply) -> std::io::Result<()> {
        send(&mut self.stream, reply)
    }

    pub fn try_clone(&self) -> std::io::Result<Connection> {
        Ok(Connection { stream: self.stream.try_clone()? })
    }

    /// Ends the stream in both directions, also for copies.
    pub fn end(&self) {
        // It may have ended before.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

pub struct Server {
    listener: UnixListener,
}

impl Server {
    /// Listens at `path`, which may be longer than a socket address holds.
    pub fn bind(path: &Path) -> Result<Server> {
        let (_dir, short) = short_path(path).with_context(|| format!("control socket {}", path.display()))?;
        let listener =
            UnixListener::bind(short).with_context(|| format!("listening on control socket {}", path.display()))?;
        Ok(Server { listener })
    }

    pub fn from_listener(listener: UnixListener) -> Server {
        Server { listener }
    }

    /// Serves for the rest of the process's life, on threads of its own.
    pub fn spawn(self, handler: Arc<dyn Handler>) -> Result<()> {
        std::thread::Builder::new()
            .name("control".into())
            .stack_size(128 << 10)
            .spawn(move || self.accept(handler))
            .context("control thread")?;
        Ok(())
    }

    fn accept(self, handler: Arc<dyn Handler>) {
        let connections = Arc::new(AtomicUsize::new(0));
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    log::warn!("control socket: accept: {error}");
                    // Out of descriptors, most likely: do not spin on it.
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    continue;
                }
            };
            if !peer_allowed(&stream) || connections.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                continue;
            }
            connections.fetch_add(1, Ordering::Relaxed);
            let (handler, count) = (handler.clone(), connections.clone());
            let spawned = std::thread::Builder::new().name("control".into()).stack_size(256 << 10).spawn(move || {
                if let Err(error) = serve(stream, &*handler) {
                    log::debug!("control connection: {error}");
                }
                count.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// Only root and the user the sandbox runs as may control it. In a user namespace without mappings everybody outside looks
/// the same; there the state directory, which only its owner may enter, keeps the others out.
fn peer_allowed(stream: &UnixStream) -> bool {
    match peer_user(stream) {
        Ok(uid) if uid == 0 || uid == rustix::process::geteuid().as_raw() => true,
        Ok(uid) => {
            log::warn!("control socket: refused user {uid}");
            false
        }
        Err(error) => {
            log::warn!("control socket: peer credentials: {error}");
            false
        }
    }
}

/// SO_PEERCRED. The peer's pid is 0 here when it lives outside our pid namespace.
fn peer_user(stream: &UnixStream) -> std::io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to `peer`.
    let result = unsafe {
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
        libc::getsockopt(stream.as_raw_fd(), level, name, (&raw mut peer).cast(), &mut size)
    };
    if result != 0 { Err(std::io::Error::last_os_error()) } else { Ok(peer.uid) }
}

fn serve(mut stream: UnixStream, handler: &dyn Handler) -> std::io::Result<()> {
    let mut greeted = false;
    loop {
        let mut collector = Collector { stream: &stream, fds: Vec::new() };
        let Some(request) = receive(&mut collector)? else { return Ok(()) };
        let fds = collector.fds;
        let reply = match request {
            Request::Hello { version } => {
                greeted = true;
                Reply::Hello { version: version.min(PROTOCOL_VERSION) }
            }
            _ if !greeted => Reply::error(libc::EPROTO, "the first control request must be hello"),
            request @ Request::Exec { .. } => {
                handler.exec(request, fds, Connection { stream });
                return Ok(());
            }
            request => handler.handle(request),
        };
        send(&mut stream, &reply)?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::{super::Client, *};

    struct Fake;
    impl Handler for Fake {
        fn handle(&self, request: Request) -> Reply {
            match request {
                Request::Wait { container } if container == "c" => Reply::Exited { status: 0x100 },
                Request::Signal { .. } => Reply::error(libc::ESRCH, "no such process"),
                _ => Reply::Done,
            }
        }

        fn exec(&self, request: Request, fds: Vec<OwnedFd>, mut connection: Connection) {
            let Request::Exec { streams, .. } = request else { panic!("{request:?}") };
            connection.send(&Reply::Started { pid: (fds.len() * 10 + streams.len()) as i32 }).unwrap();
            assert!(connection.receive().unwrap().is_none());
        }
    }

    #[test]
    fn descriptors_come_with_an_exec() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || serve(theirs, &Fake));
        let mut client = Client::from_stream(ours).unwrap();
        let file = rustix::fs::memfd_create("stream", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let fds = vec![file.as_fd(); 3];
        let request = Request::Exec { container: "c".into(), process: Box::default(), streams: Vec::new(), proxy: 1 };
        assert_eq!(client.call_with(&request, &fds).unwrap(), Reply::Started { pid: 30 });
        drop(client);
        server.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_drives_a_server_at_a_long_path() {
        let dir = std::env::temp_dir().join(format!("runsc-control-{}-{}", std::process::id(), "x".repeat(150)));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("control.sock");
        Server::bind(&path).unwrap().spawn(Arc::new(Fake)).unwrap();
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.wait("c").unwrap(), 0x100);
        let error = client.signal("c", super::super::SignalTarget::Init, 9).unwrap_err();
        assert_eq!(error.downcast_ref::<std::io::Error>().unwrap().raw_os_error(), Some(libc::ESRCH));
        client.shutdown().unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nothing_is_served_before_hello() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || serve(theirs, &Fake));
        send(&mut ours, &Request::Shutdown).unwrap();
        assert!(matches!(receive(&mut ours).unwrap(), Some(Reply::Error { errno: libc::EPROTO, .. })));
    }
}
