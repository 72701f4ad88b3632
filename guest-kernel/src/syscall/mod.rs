//! The system call table: one row a call drives dispatch, strace, `runsc help syscalls` and the coverage test.
//!
//! Each subsystem lists its rows with [`syscalls!`](crate::syscalls) beside its handlers; here they become one table. A
//! handler gets typed arguments, decoded by [`Arg`]: what the type rejects is the call's errno before the handler runs.

mod absent;
mod args;
mod strace;

use sentry_abi::layout::PAGE_SIZE;

pub use args::{Arg, Fd, Hex, IntoReturn, UserPath};
pub use strace::configure as configure_strace;

use crate::{
    counters::{Counter, count},
    errno::{ENOSYS, Error, Result},
    task::Current,
};

/// How much of a call works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    Full,
    /// The note says what is missing.
    Partial,
    /// Known, answered with the errno of a kernel built without it.
    Unsupported,
}

pub struct ArgInfo {
    pub name: &'static str,
    pub show: fn(&Current, u64, &mut alloc::string::String),
}

pub struct Syscall {
    pub number: u32,
    pub name: &'static str,
    pub args: &'static [ArgInfo],
    pub handler: fn(&mut Current, &[u64; 6]) -> Result<u64>,
    pub level: Level,
    pub note: &'static str,
    /// The ABI test program that fails when the call answers ENOSYS.
    pub test: &'static str,
}

/// Rows of a subsystem: `number name(arg: Type, ...) = handler, Level, "note", "test";`
#[macro_export]
macro_rules! syscalls {
    ($vis:vis $table:ident; $($number:literal $name:ident($($arg:ident: $ty:ty),*) = $handler:path, $level:expr, $note:literal, $test:literal;)*) => {
        $vis const $table: &[Syscall] = &[$(Syscall {
            number: $number,
            name: stringify!($name),
            args: &[$($crate::syscall::ArgInfo { name: stringify!($arg), show: <$ty as $crate::syscall::Arg>::show }),*],
            handler: {
                fn call(cur: &mut $crate::task::Current, _args: &[u64; 6]) -> $crate::errno::Result<u64> {
                    let mut _raw = _args.iter();
                    $(let $arg = <$ty as $crate::syscall::Arg>::decode(_raw.next().copied().unwrap_or(0))?;)*
                    $handler(cur $(, $arg)*).map($crate::syscall::IntoReturn::into_return)
                }
                call
            },
            level: $level,
            note: $note,
            test: $test,
        }),*];
    };
}

const GROUPS: &[&[Syscall]] = &[
    crate::fs::syscalls::attr::CALLS,
    crate::fs::syscalls::descriptors::CALLS,
    crate::fs::syscalls::fcntl::CALLS,
    crate::fs::syscalls::inotify::CALLS,
    crate::fs::syscalls::mount::CALLS,
    crate::fs::syscalls::mqueue::CALLS,
    crate::fs::syscalls::names::CALLS,
    crate::fs::syscalls::open::CALLS,
    crate::fs::syscalls::poll::CALLS,
    crate::fs::syscalls::rw::CALLS,
    crate::fs::syscalls::stat::CALLS,
    crate::fs::syscalls::transfer::CALLS,
    crate::futex::syscalls::CALLS,
    crate::ipc::syscalls::CALLS,
    crate::mm::syscalls::CALLS,
    crate::net::syscalls::CALLS,
    crate::net::message::CALLS,
    crate::signal::syscalls::CALLS,
    crate::task::groups::CALLS,
    crate::task::ids::CALLS,
    crate::task::info::CALLS,
    crate::task::peek::CALLS,
    crate::task::pidfd::CALLS,
    crate::task::prctl::CALLS,
    crate::task::rlimit::CALLS,
    crate::task::scheduling::CALLS,
    crate::task::syscalls::CALLS,
    absent::CALLS,
    crate::time::syscalls::CALLS,
    crate::uts::CALLS,
];

/// One past the highest number of Linux 6.1.
pub const LIMIT: usize = 451;

/// The table, by number.
pub static TABLE: [Option<&'static Syscall>; LIMIT] = {
    let mut table: [Option<&'static Syscall>; LIMIT] = [None; LIMIT];
    let mut group = 0;
    while group < GROUPS.len() {
        let mut row = 0;
        while row < GROUPS[group].len() {
            let call = &GROUPS[group][row];
            assert!(table[call.number as usize].is_none(), "two rows for one system call");
            table[call.number as usize] = Some(call);
            row += 1;
        }
        group += 1;
    }
    table
};

/// Runs the system call the task stopped for and sets its return value.
pub fn dispatch(cur: &mut Current) {
    let number = cur.syscall_number();
    let args = cur.arguments();
    let call = TABLE.get(number as usize).copied().flatten();
    let traced = strace::enter(cur, call, &args);
    let result = match call {
        Some(call) => (call.handler)(cur, &args),
        None => {
            count(Counter::UnknownSyscalls);
            crate::debug!("system call {number} is not implemented");
            Err(ENOSYS)
        }
    };
    if traced {
        strace::leave(cur, call, &args, result);
    }
    cur.finish_syscall(result);
}

impl Current {
    pub fn finish_syscall(&mut self, result: Result<u64>) {
        match result {
            Ok(value) => self.set_return(value),
            Err(error) => {
                if let Error::Restart(restart) = error {
                    self.restart = Some(restart);
                }
                self.set_return(error.to_return());
            }
        }
    }
}

/// Rounds up to whole pages; None on overflow.
pub fn page_align(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE_SIZE)
}
