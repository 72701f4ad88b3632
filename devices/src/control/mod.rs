//! Control of a running sandbox.
//!
//! The command line connects to the VMM's Unix socket ([`Client`], [`Server`]) and sends [`Request`]s as length-prefixed JSON;
//! a `Hello` with the protocol's version comes first. JSON, because a newer `runsc` has to drive a sandbox that an older one
//! started: unknown fields are ignored and missing ones take their default. The VMM answers what it knows itself and passes
//! the rest to the sentry over the control device ([`Sentry`]).

mod client;
mod device;
mod protocol;
mod server;
mod socket;

pub use client::Client;
pub use device::{ControlBackend, ControlConfig, Sentry, spawn};
pub use protocol::{PROTOCOL_VERSION, Proxy, Reply, Request, SignalTarget};
pub use server::{Connection, Handler, Server};
