//! Sockets that stay inside the sandbox (socket(7)).
//!
//! - [`Socket`]: what a protocol implements; [`SocketFile`]: a socket behind a descriptor; [`Base`]: what every socket has.
//! - [`ByteQueue`] and [`MessageQueue`]: what has been sent to a socket and waits there; [`StreamEnd`]: one side of a
//!   connected byte stream, the engine of every stream protocol.
//! - Modules `unix`, `inet` and `netlink`: the protocols.
//!
//! Data move from the sender's memory into the receiver's queue and from there into its memory; nothing else crosses.

mod address;
mod ancillary;
mod base;
mod byte_queue;
pub mod inet;
pub mod message;
mod message_queue;
mod netlink;
pub mod options;
mod socket;
mod stream;
pub mod syscalls;
pub mod unix;

pub use address::{AF_UNIX, SockAddr};
pub use ancillary::{Ancillary, Received, Ucred};
pub use base::{Base, Kind, Patience, SHUT_RECEIVE, SHUT_SEND, msg};
pub use byte_queue::ByteQueue;
pub use message_queue::{Account, Message, MessageQueue};
pub use socket::{Recv, Send, Socket, SocketFile};
pub use stream::StreamEnd;
