//! Log lines to the host, by level; formatted in the sentry, written by the VMM.

use core::{
    fmt::Write,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
};

use alloc::string::String;
pub use sentry_abi::hostcall::LogLevel;

static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Warn as u8);

pub fn set_level(level: u8) {
    LEVEL.store(level, Relaxed);
}

#[inline]
pub fn enabled(level: LogLevel) -> bool {
    level as u8 <= LEVEL.load(Relaxed)
}

/// Longest line sent; the rest is cut.
const MAX_LINE: usize = 8192;

pub fn write(level: LogLevel, args: core::fmt::Arguments<'_>) {
    let mut line = String::new();
    // Formatting into a String cannot fail unless a Display impl does; what it wrote so far is still worth sending.
    let _ = line.write_fmt(args);
    let bytes = &line.as_bytes()[..line.len().min(MAX_LINE)];
    crate::arch::host::log(level, bytes);
}

#[macro_export]
macro_rules! log_at {
    ($level:expr, $($arg:tt)*) => {
        if $crate::log::enabled($level) { $crate::log::write($level, format_args!($($arg)*)) }
    };
}
#[macro_export]
macro_rules! warn { ($($arg:tt)*) => { $crate::log_at!($crate::log::LogLevel::Warn, $($arg)*) }; }
#[macro_export]
macro_rules! info { ($($arg:tt)*) => { $crate::log_at!($crate::log::LogLevel::Info, $($arg)*) }; }
#[macro_export]
macro_rules! debug { ($($arg:tt)*) => { $crate::log_at!($crate::log::LogLevel::Debug, $($arg)*) }; }
