//! Standard streams: the descriptors containers were started with (files, pipes, sockets, terminals), offered to the sentry
//! over the protocol of [`sentry_abi::console`].
//!
//! One thread answers every request at once: a read that would wait is EAGAIN, and the sentry subscribes to readiness, which
//! comes back as an event. So a waiting task can be interrupted without losing data that a read had already taken. O_NONBLOCK
//! is never set on a description that others share: pipes and terminals are opened again through /proc/self/fd, which
//! gives a description of our own, and where that is not possible, poll(2) is asked first and writes stay within PIPE_BUF.
//! Offsets and O_APPEND of files are those of the shared description, as on Linux.
//!
//! Job control of a host terminal stays with the host: the foreground group there is `runsc`, which forwards the signals; the
//! sandbox's own process groups are the sentry's business.

mod device;
mod ioctl;
mod stream;

pub use device::{ConsoleBackend, ConsoleConfig, Streams, spawn};
pub use stream::{Prepared, Stream, prepare};
