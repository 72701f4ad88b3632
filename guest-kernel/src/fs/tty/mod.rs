//! Terminals of the sentry's own: pseudo-terminal pairs, their line discipline, job control (pty(7), termios(3)).
//!
//! A terminal of the host is in `fs::stdio`: its line discipline is the host's, its job control is the one here.

mod devpts;
pub mod job;
mod line;
mod pty;
mod termios;

pub use devpts::PtsFs;
pub use job::{JobControl, open_controlling};
