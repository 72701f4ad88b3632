//! `--strace`: a line at entry for calls that may block, and one with the result.

use alloc::{string::String, vec::Vec};
use core::{
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use super::Syscall;
use crate::{
    errno::{Error, Result, text},
    log::{self, LogLevel},
    sync::SpinLock,
    task::Current,
};

static ENABLED: AtomicBool = AtomicBool::new(false);
/// Numbers to show; empty: all.
static ONLY: SpinLock<Vec<u32>> = SpinLock::new(Vec::new());

pub fn configure(config: &sentry_abi::config::Strace) {
    let numbers = config
        .only
        .iter()
        .filter_map(|name| super::TABLE.iter().flatten().find(|c| c.name == name).map(|c| c.number))
        .collect();
    let old = core::mem::replace(&mut *ONLY.lock(), numbers);
    drop(old);
    ENABLED.store(config.enabled, Relaxed);
}

/// Whether this call is traced.
pub(super) fn enter(cur: &Current, call: Option<&Syscall>, args: &[u64; 6]) -> bool {
    if !ENABLED.load(Relaxed) {
        return false;
    }
    let shown = {
        let only = ONLY.lock();
        only.is_empty() || call.is_some_and(|c| only.contains(&c.number))
    };
    // Arguments that name memory are read now: the call may replace the address space.
    if shown && call.is_some_and(|c| matches!(c.number, 59 | 60 | 231 | 322)) {
        log::write(LogLevel::Strace, format_args!("[{}] {} ...", cur.task.tid(), line(cur, call, args)));
    }
    shown
}

pub(super) fn leave(cur: &Current, call: Option<&Syscall>, args: &[u64; 6], result: Result<u64>) {
    let line = line(cur, call, args);
    match result {
        Ok(value) if value > 0xffff_ffff => {
            log::write(LogLevel::Strace, format_args!("[{}] {line} = {value:#x}", cur.task.tid()));
        }
        Ok(value) => log::write(LogLevel::Strace, format_args!("[{}] {line} = {value}", cur.task.tid())),
        Err(Error::Errno(e)) => {
            log::write(LogLevel::Strace, format_args!("[{}] {line} = -1 {e:?} ({})", cur.task.tid(), text(e)));
        }
        Err(Error::Restart(r)) => log::write(LogLevel::Strace, format_args!("[{}] {line} = ? {r:?}", cur.task.tid())),
    }
}

fn line(cur: &Current, call: Option<&Syscall>, args: &[u64; 6]) -> String {
    let mut out = String::new();
    let Some(call) = call else {
        let _ = write!(out, "syscall_{}({:#x}, {:#x}, {:#x})", cur.syscall_number(), args[0], args[1], args[2]);
        return out;
    };
    let _ = write!(out, "{}(", call.name);
    for (i, (info, raw)) in call.args.iter().zip(args).enumerate() {
        let _ = write!(out, "{}{}=", if i == 0 { "" } else { ", " }, info.name);
        (info.show)(cur, *raw, &mut out);
    }
    out.push(')');
    out
}
