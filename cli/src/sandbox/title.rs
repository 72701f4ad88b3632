//! The command line that the host shows for a process which stands for one of the container (/proc/PID/cmdline, ps(1)).

use std::fs;

use anyhow::{Context, Result, ensure};

/// Longest command line that is shown.
const MAX: usize = 4096;

/// `struct prctl_mm_map` of <linux/prctl.h>.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

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
    let map = MemoryMap {
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
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::MAX,
    };
    // SAFETY: the kernel reads the structure; what changes is where /proc finds the command line, which lives for ever.
    let result = unsafe {
        let (map, size) = (&raw const map, size_of::<MemoryMap>());
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, map, size, 0)
    };
    ensure!(result == 0, "PR_SET_MM_MAP: {}", std::io::Error::last_os_error());
    Ok(())
}
