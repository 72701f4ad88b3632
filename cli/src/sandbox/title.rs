//! The command line that the host shows for a process which stands for one of the container (/proc/PID/cmdline, ps(1)).

use std::fs;

use anyhow::{Context, Result, ensure};
use rustix::process::{PrctlMmMap, configure_virtual_memory_map};

/// Longest command line that is shown.
const MAX: usize = 4096;

/// Shows `args`. Needs /proc.
pub fn set(args: &[Vec<u8>]) -> Result<()> {
    let mut line = Vec::new();
    for arg in args {
        if line.len() + arg.len() >= MAX {
            break;
        }
        line.extend_from_slice(arg);
        line.push(0);
    }
    ensure!(!line.is_empty(), "no arguments");
    let stat = fs::read("/proc/self/stat").context("/proc/self/stat")?;
    // The name in parentheses may hold anything.
    let rest = stat.iter().rposition(|&b| b == b')').map_or(&stat[..0], |at| &stat[at + 1..]);
    let fields: Vec<u64> =
        String::from_utf8_lossy(rest).split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    // The first of them is field 3 of proc(5).
    let field = |number: usize| fields.get(number - 3).copied().context("/proc/self/stat: too short");
    // For the rest of the process's life.
    let line: &'static [u8] = Box::leak(line.into_boxed_slice());
    let arg_start = line.as_ptr() as u64;
    let map = PrctlMmMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        // SAFETY: sbrk(0) only tells the program break.
        brk: unsafe { libc::sbrk(0) } as u64,
        start_stack: field(28)?,
        arg_start,
        arg_end: arg_start + line.len() as u64,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: std::ptr::null_mut(),
        auxv_size: 0,
        exe_fd: -1,
    };
    // SAFETY: what changes is where /proc finds the command line, which lives for ever.
    unsafe { configure_virtual_memory_map(&map) }.context("PR_SET_MM_MAP")
}
