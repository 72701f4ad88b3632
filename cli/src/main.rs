//! `runsc`: an OCI container runtime that gives every container its own kernel.
mod args;
mod flags;
mod host;
mod logging;
mod spec;
mod store;
mod version;

fn main() {}
