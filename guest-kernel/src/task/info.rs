//! What the system says of itself and gives: sysinfo(2), getrandom(2), syslog(2), membarrier(2).

use alloc::vec::Vec;
use core::sync::atomic::Ordering::SeqCst;

use super::{Current, creds::cap, table};
use crate::{
    errno::{EINVAL, EPERM, Result},
    mm::{
        frames,
        user::{UserAddr, UserPtr},
    },
    random, sched,
    syscall::{Hex, Level::*, Syscall},
    syscalls, time,
};

syscalls! { pub CALLS;
    99 sysinfo(info: UserPtr<SysInfo>) = sysinfo, Full, "", "ident";
    103 syslog(kind: i32, buf: UserAddr, len: i32) = syslog, Partial, "the log is empty", "ident";
    135 personality(persona: u32) = personality, Partial, "ADDR_NO_RANDOMIZE only", "ident";
    318 getrandom(buf: UserAddr, len: usize, flags: Hex) = getrandom, Full, "", "ident";
    324 membarrier(command: i32, flags: u32, cpu: i32) = membarrier, Full, "", "sched";
}

/// struct sysinfo.
#[derive(Clone, Copy, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub struct SysInfo {
    uptime: i64,
    loads: [u64; 3],
    total_ram: u64,
    free_ram: u64,
    shared_ram: u64,
    buffer_ram: u64,
    total_swap: u64,
    free_swap: u64,
    procs: u16,
    pad: [u16; 3],
    total_high: u64,
    free_high: u64,
    mem_unit: u32,
    pad2: u32,
}

fn sysinfo(cur: &mut Current, info: UserPtr<SysInfo>) -> Result<()> {
    let (total, free) = frames::usage();
    let uptime = time::monotonic().saturating_sub(time::started());
    let value = SysInfo {
        uptime: uptime.div_ceil(time::NSEC_PER_SEC) as i64,
        total_ram: total,
        free_ram: free,
        procs: table::lock().task_count().min(u16::MAX as usize) as u16,
        mem_unit: 1,
        ..SysInfo::default()
    };
    cur.mm.write_value(info, &value)
}

fn syslog(cur: &mut Current, kind: i32, _buf: UserAddr, len: i32) -> Result<u64> {
    const READ_ALL: i32 = 3;
    const SIZE_BUFFER: i32 = 10;
    if !matches!(kind, READ_ALL | SIZE_BUFFER) && !cur.task.capable(cap::SYSLOG) {
        return Err(EPERM);
    }
    match kind {
        0..=9 if len >= 0 => Ok(0),
        // A ring of this size with nothing in it.
        SIZE_BUFFER => Ok(1 << 17),
        _ => Err(EINVAL),
    }
}

fn personality(cur: &mut Current, persona: u32) -> Result<u32> {
    use core::sync::atomic::Ordering::Relaxed;
    let slot = &cur.task.process.personality;
    Ok(if persona == u32::MAX { slot.load(Relaxed) } else { slot.swap(persona, Relaxed) })
}

/// Bytes made at a time: bounds the kernel memory and keeps a long request interruptible.
const CHUNK: usize = 4096;

fn getrandom(cur: &mut Current, buf: UserAddr, len: usize, flags: Hex) -> Result<usize> {
    const NONBLOCK: u64 = 1;
    const RANDOM: u64 = 2;
    const INSECURE: u64 = 4;
    if flags.0 & !(NONBLOCK | RANDOM | INSECURE) != 0 || flags.0 & (RANDOM | INSECURE) == RANDOM | INSECURE {
        return Err(EINVAL);
    }
    let len = len.min(crate::mm::io::MAX_TRANSFER);
    let mut chunk: Vec<u8> = alloc::vec![0; len.min(CHUNK)];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(CHUNK);
        random::fill(&mut chunk[..n]);
        match cur.mm.write_partial(buf.offset(done as u64)?, &chunk[..n]) {
            Ok(written) => done += written,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        if done < len && sched::interrupted() {
            break;
        }
    }
    Ok(done)
}

/// Every entry to the kernel is a full barrier here, and other CPUs that run the caller's memory are brought in by an
/// interrupt.
fn membarrier(cur: &mut Current, command: i32, flags: u32, _cpu: i32) -> Result<u64> {
    const QUERY: i32 = 0;
    const GLOBAL: i32 = 1;
    const GLOBAL_EXPEDITED: i32 = 2;
    const REGISTER_GLOBAL_EXPEDITED: i32 = 4;
    const PRIVATE_EXPEDITED: i32 = 8;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 16;
    const ALL: i32 =
        GLOBAL | GLOBAL_EXPEDITED | REGISTER_GLOBAL_EXPEDITED | PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED;
    if flags != 0 {
        return Err(EINVAL);
    }
    match command {
        QUERY => Ok(ALL as u64),
        PRIVATE_EXPEDITED if cur.mm.barriers.load(SeqCst) & PRIVATE_EXPEDITED as u32 == 0 => Err(EPERM),
        GLOBAL | GLOBAL_EXPEDITED | PRIVATE_EXPEDITED => {
            sched::synchronize_user(cur.mm.root(), command == PRIVATE_EXPEDITED);
            Ok(0)
        }
        REGISTER_GLOBAL_EXPEDITED | REGISTER_PRIVATE_EXPEDITED => {
            // Each registration is its command shifted by one.
            cur.mm.barriers.fetch_or(command as u32 >> 1, SeqCst);
            Ok(0)
        }
        _ => Err(EINVAL),
    }
}
