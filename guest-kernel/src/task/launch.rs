//! What a process that the host asks for starts with, beside its program: a working directory and a home.

use alloc::{collections::BTreeMap, string::String, sync::Arc, vec, vec::Vec};

use sentry_abi::config::ProcessConfig;

use super::Creds;
use crate::{
    errno::{EACCES, ENOTDIR, Error, Result},
    fs::{
        FileType, FsContext, OpenFlags, Path, Resolve,
        namei::{self, Caller},
    },
};

/// Bytes of /etc/passwd that are looked at.
const MAX_PASSWD: usize = 1 << 20;

/// Makes the process's working directory that of `fs` and gives the process as one that opens files. Root's permission to
/// search is enough, as for runtimes that enter the directory before they change the user.
pub fn enter(fs: &FsContext, creds: Arc<Creds>, config: &ProcessConfig) -> Result<Caller, (Error, String)> {
    let caller = Caller { root: fs.root(), cwd: fs.root(), creds, umask: fs.umask() };
    let name = if config.cwd.is_empty() { b"/" } else { &config.cwd[..] };
    let directory = find(&caller, name)
        .map_err(|error| (error, alloc::format!("working directory {}", String::from_utf8_lossy(name))))?;
    fs.set_cwd(directory.clone());
    Ok(Caller { cwd: directory, ..caller })
}

fn find(caller: &Caller, name: &[u8]) -> Result<Path> {
    let found = match caller.walk(None).resolve(name, true) {
        Err(EACCES) => as_root(caller).walk(None).resolve(name, true),
        found => found,
    }?;
    if found.inode().is_dir() { Ok(found) } else { Err(ENOTDIR) }
}

fn as_root(caller: &Caller) -> Caller {
    Caller { root: caller.root.clone(), cwd: caller.root.clone(), creds: Arc::new(Creds::root()), umask: caller.umask }
}

/// The environment: of entries with one name the last, and a HOME if there is none: the user's in /etc/passwd, or `/`.
pub fn environment(caller: &Caller, config: &ProcessConfig) -> Vec<Vec<u8>> {
    let mut env = last_of_each(&config.env);
    if !env.iter().any(|entry| name(entry) == b"HOME") {
        let passwd = read_passwd(caller).unwrap_or_default();
        let home = home_of(&passwd, config.uid).unwrap_or(b"/");
        env.push([b"HOME=", home].concat());
    }
    env
}

fn name(entry: &[u8]) -> &[u8] {
    entry.split(|&b| b == b'=').next().unwrap_or(entry)
}

fn last_of_each(env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let last: BTreeMap<&[u8], usize> = env.iter().enumerate().map(|(at, entry)| (name(entry), at)).collect();
    env.iter()
        .enumerate()
        .filter(|(at, entry)| last.get(name(entry)) == Some(at))
        .map(|(_, entry)| entry.clone())
        .collect()
}

fn read_passwd(caller: &Caller) -> Result<Vec<u8>> {
    let flags = OpenFlags::NONBLOCK;
    let file = namei::open(&as_root(caller), None, b"/etc/passwd", flags | OpenFlags::PATH, 0, Resolve::empty())?;
    if file.path().inode().file_type() != FileType::Regular {
        return Err(EACCES);
    }
    let file = namei::open_checked(file.path(), flags)?;
    let size = usize::try_from(file.stat()?.size).unwrap_or(usize::MAX).min(MAX_PASSWD);
    let mut text = vec![0; size];
    let n = file.read_exact_at(&mut text, 0)?;
    text.truncate(n);
    Ok(text)
}

/// passwd(5): the sixth field of the line whose third is `uid`.
fn home_of(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    passwd.split(|&b| b == b'\n').find_map(|line| {
        let mut fields = line.split(|&b| b == b':').skip(2);
        let number: u32 = core::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let home = fields.nth(2)?;
        (number == uid && !home.is_empty() && !home.contains(&0)).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_of_a_name_counts() {
        let env = ["A=1", "PATH=/bin", "A=2", "B", "PATH=/usr/bin=x"].map(|entry| entry.as_bytes().to_vec());
        assert_eq!(last_of_each(&env), [&b"A=2"[..], b"B", b"PATH=/usr/bin=x"]);
    }

    #[test]
    fn home_is_the_sixth_field_of_the_users_line() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\n:::\nx:y:7:::\nme:x:1000:1000:me,,:/home/me:/bin/sh\nalso:x:1000:1:::";
        assert_eq!(home_of(passwd, 0), Some(&b"/root"[..]));
        assert_eq!(home_of(passwd, 1000), Some(&b"/home/me"[..]));
        assert_eq!(home_of(passwd, 7), None);
        assert_eq!(home_of(passwd, 3), None);
        assert_eq!(home_of(b"a:b:1:1:c:/d", 1), Some(&b"/d"[..]));
    }
}
