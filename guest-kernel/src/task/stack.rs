//! What a new program finds on its stack: arguments, environment, auxiliary vector (getauxval(3)).

use alloc::{sync::Arc, vec::Vec};

use sentry_abi::layout::PAGE_SIZE;

use crate::{
    errno::{E2BIG, Result},
    mm::{AddressSpace, MapRequest, Prot, VmaFlags, VmaKind, user::UserAddr},
    random,
};

pub const AT_NULL: u64 = 0;
pub const AT_PHDR: u64 = 3;
pub const AT_PHENT: u64 = 4;
pub const AT_PHNUM: u64 = 5;
pub const AT_PAGESZ: u64 = 6;
pub const AT_BASE: u64 = 7;
pub const AT_FLAGS: u64 = 8;
pub const AT_ENTRY: u64 = 9;
pub const AT_UID: u64 = 11;
pub const AT_EUID: u64 = 12;
pub const AT_GID: u64 = 13;
pub const AT_EGID: u64 = 14;
pub const AT_PLATFORM: u64 = 15;
pub const AT_HWCAP: u64 = 16;
pub const AT_CLKTCK: u64 = 17;
pub const AT_SECURE: u64 = 23;
pub const AT_RANDOM: u64 = 25;
pub const AT_HWCAP2: u64 = 26;
pub const AT_EXECFN: u64 = 31;
pub const AT_SYSINFO_EHDR: u64 = 33;
pub const AT_MINSIGSTKSZ: u64 = 51;

const PLATFORM: &[u8] = b"x86_64\0";
/// Mapped below the initial content from the start.
const ROOM: u64 = 128 << 10;

pub struct StackRequest<'a> {
    /// One past the highest address, page aligned.
    pub top: u64,
    pub executable: bool,
    pub argv: &'a [Vec<u8>],
    pub envp: &'a [Vec<u8>],
    pub path: &'a [u8],
    /// Entries besides those that point into the stack.
    pub auxv: &'a [(u64, u64)],
    /// RLIMIT_STACK.
    pub limit: u64,
}

pub struct Stack {
    pub sp: u64,
    pub args: (u64, u64),
    pub env: (u64, u64),
    /// Where the auxiliary vector is.
    pub auxv: (u64, u64),
}

/// Maps the stack and writes its initial content.
pub fn build(mm: &Arc<AddressSpace>, request: &StackRequest<'_>) -> Result<Stack> {
    let size = |strings: &[Vec<u8>]| strings.iter().map(|s| s.len() as u64 + 1).sum::<u64>();
    let (args_size, env_size) = (size(request.argv), size(request.envp));
    let path_size = request.path.len() as u64 + 1;
    // Linux ends the stack with eight zero bytes.
    let path_at = request.top - 8 - path_size;
    let env_at = path_at - env_size;
    let args_at = env_at - args_size;
    let random_at = (args_at - 16 - PLATFORM.len() as u64) & !15;
    let platform_at = random_at + 16;

    let mut words: Vec<u64> = Vec::with_capacity(request.argv.len() + request.envp.len() + 64);
    words.push(request.argv.len() as u64);
    let mut list = |strings: &[Vec<u8>], start: u64| {
        let mut at = start;
        for s in strings {
            words.push(at);
            at += s.len() as u64 + 1;
        }
        words.push(0);
    };
    list(request.argv, args_at);
    list(request.envp, env_at);
    let auxv_index = words.len() as u64;
    let own = [(AT_RANDOM, random_at), (AT_EXECFN, path_at), (AT_PLATFORM, platform_at), (AT_NULL, 0)];
    for (key, value) in request.auxv.iter().chain(&own) {
        words.extend([*key, *value]);
    }
    // The ABI wants the stack pointer 16-byte aligned at entry.
    let sp = (random_at - words.len() as u64 * 8) & !15;
    if request.top - sp > limit(request.limit) + PAGE_SIZE {
        return Err(E2BIG);
    }
    let start = (sp - ROOM) & !(PAGE_SIZE - 1);
    let mut prot = Prot::READ | Prot::WRITE;
    if request.executable {
        prot |= Prot::EXEC;
    }
    mm.map(MapRequest {
        address: start,
        len: request.top - start,
        prot,
        max_prot: Prot::all(),
        flags: VmaFlags::GROWS_DOWN,
        kind: VmaKind::Anonymous,
        fixed: true,
        no_replace: false,
    })?;

    let mut strings = Vec::with_capacity((request.top - args_at) as usize);
    for s in request.argv.iter().chain(request.envp).map(Vec::as_slice).chain([request.path]) {
        strings.extend_from_slice(s);
        strings.push(0);
    }
    mm.write(UserAddr(args_at), &strings)?;
    mm.write(UserAddr(platform_at), PLATFORM)?;
    let mut bytes = [0; 16];
    random::fill(&mut bytes);
    mm.write(UserAddr(random_at), &bytes)?;
    mm.write(UserAddr(sp), zerocopy::IntoBytes::as_bytes(words.as_slice()))?;
    let auxv = (sp + auxv_index * 8, sp + words.len() as u64 * 8);
    Ok(Stack { sp, args: (args_at, env_at), env: (env_at, path_at), auxv })
}

/// Bytes arguments and environment may take together, pointers included (execve(2), "Limits on size").
pub fn limit(stack: u64) -> u64 {
    (stack / 4).clamp(128 << 10, 6 << 20)
}
