//! Names of the system (uname(2)): host and domain name, and the release whose behaviour is promised.

use alloc::vec::Vec;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    errno::{EINVAL, EPERM, Result},
    mm::user::{UserAddr, UserPtr},
    sync::SpinLock,
    syscall::{Level::*, Syscall},
    syscalls,
    task::{Current, cap},
};

syscalls! { pub CALLS;
    63 uname(buffer: UserPtr<UtsName>) = uname, Full, "", "ident";
    170 sethostname(name: UserAddr, len: i32) = sethostname, Full, "", "ident";
    171 setdomainname(name: UserAddr, len: i32) = setdomainname, Full, "", "ident";
}

pub const SYSNAME: &str = "Linux";
pub const RELEASE: &str = "6.1.0";
pub const VERSION: &str = "#1 SMP runsc";
pub const MACHINE: &str = "x86_64";
/// Longest name, without its NUL.
const NAME_MAX: usize = 64;

struct Names {
    host: Vec<u8>,
    domain: Vec<u8>,
}

static NAMES: SpinLock<Names> = SpinLock::new(Names { host: Vec::new(), domain: Vec::new() });

/// Takes the container's names; a name too long is cut.
pub fn configure(host: &str, domain: &str) {
    set_host(&host.as_bytes()[..host.len().min(NAME_MAX)]);
    set_domain(&domain.as_bytes()[..domain.len().min(NAME_MAX)]);
}

pub fn host() -> Vec<u8> {
    let names = NAMES.lock();
    if names.host.is_empty() { b"runsc".to_vec() } else { names.host.clone() }
}

pub fn domain() -> Vec<u8> {
    let names = NAMES.lock();
    if names.domain.is_empty() { b"(none)".to_vec() } else { names.domain.clone() }
}

pub fn set_host(name: &[u8]) {
    NAMES.lock().host = name.to_vec();
}

pub fn set_domain(name: &[u8]) {
    NAMES.lock().domain = name.to_vec();
}

/// struct new_utsname.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct UtsName {
    fields: [[u8; NAME_MAX + 1]; 6],
}

fn uname(cur: &mut Current, buffer: UserPtr<UtsName>) -> Result<()> {
    let mut name = UtsName { fields: [[0; NAME_MAX + 1]; 6] };
    let (host, domain) = (host(), domain());
    let values: [&[u8]; 6] =
        [SYSNAME.as_bytes(), &host, RELEASE.as_bytes(), VERSION.as_bytes(), MACHINE.as_bytes(), &domain];
    for (field, value) in name.fields.iter_mut().zip(values) {
        field[..value.len()].copy_from_slice(value);
    }
    cur.mm.write_value(buffer, &name)
}

/// A name argument of a privileged caller.
fn name(cur: &Current, name: UserAddr, len: i32) -> Result<Vec<u8>> {
    if !cur.task.capable(cap::SYS_ADMIN) {
        return Err(EPERM);
    }
    let len = usize::try_from(len).ok().filter(|&l| l <= NAME_MAX).ok_or(EINVAL)?;
    let mut bytes = alloc::vec![0; len];
    cur.mm.read(name, &mut bytes)?;
    Ok(bytes)
}

fn sethostname(cur: &mut Current, addr: UserAddr, len: i32) -> Result<()> {
    set_host(&name(cur, addr, len)?);
    Ok(())
}

fn setdomainname(cur: &mut Current, addr: UserAddr, len: i32) -> Result<()> {
    set_domain(&name(cur, addr, len)?);
    Ok(())
}
