//! Directories of processes and threads.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};

use super::{Entry, Make, Subject, What, dir, line, link, mounts, secret, setting, status, text};
use crate::{
    errno::{EACCES, EINVAL, ENOENT, ESRCH, Result},
    fs::{File, Path, namespace_root},
    mm::{Prot, VmaFlags, VmaKind, user::UserAddr},
    sched,
    task::{Limit, Task, cap},
};

const fn magic(name: &'static str, make: Make, path: fn(&Subject) -> Result<Path>) -> Entry {
    Entry { name, mode: 0o777, what: What::Magic(make, path) }
}

/// What threads and processes have in common.
macro_rules! common {
    ($($more:expr,)*) => {
        &[
            $($more,)*
            secret("auxv", auxv),
            text("cgroup", cgroup),
            text("cmdline", cmdline),
            setting("comm", comm, set_comm),
            magic("cwd", cwd_text, cwd),
            secret("environ", environ),
            link("exe", exe),
            Entry { name: "fd", mode: 0o500, what: What::Fds },
            Entry { name: "fdinfo", mode: 0o555, what: What::FdInfos },
            text("gid_map", id_map),
            text("io", io),
            text("limits", limits),
            setting("loginuid", loginuid, refuse),
            text("maps", maps),
            Entry { name: "mem", mode: 0o600, what: What::Memory },
            text("mountinfo", mounts::mountinfo),
            text("mounts", mounts::mounts),
            dir("ns", NAMESPACES),
            text("oom_score", oom_score),
            setting("oom_score_adj", oom_score_adj, set_oom_score_adj),
            secret("personality", personality),
            magic("root", root_text, root),
            text("schedstat", schedstat),
            text("sessionid", loginuid),
            text("setgroups", setgroups),
            text("smaps", smaps),
            text("stat", status::stat),
            text("statm", status::statm),
            text("status", status::status),
            text("uid_map", id_map),
            text("wchan", wchan),
        ]
    };
}

pub(super) static TASK: &[Entry] = common!(text("children", children),);
pub(super) static PROCESS: &[Entry] = common!(
    Entry { name: "task", mode: 0o555, what: What::Tasks },
    dir("net", super::system::NET),
    text("mountstats", mounts::mountstats),
);

static NAMESPACES: &[Entry] = &[
    link("cgroup", |_| Ok(b"cgroup:[4026531835]".to_vec())),
    link("ipc", |_| Ok(b"ipc:[4026531839]".to_vec())),
    link("mnt", |_| Ok(b"mnt:[4026531841]".to_vec())),
    link("net", |_| Ok(b"net:[4026531840]".to_vec())),
    link("pid", |_| Ok(b"pid:[4026531836]".to_vec())),
    link("time", |_| Ok(b"time:[4026531834]".to_vec())),
    link("user", |_| Ok(b"user:[4026531837]".to_vec())),
    link("uts", |_| Ok(b"uts:[4026531838]".to_vec())),
];

fn refuse(_: &Subject, _: &[u8]) -> Result<()> {
    Err(crate::errno::EPERM)
}

/// The root that a path is shown against: the reader's.
fn reader_root(task: &Task) -> Path {
    sched::current().map_or_else(|| task.fs().root(), |me| me.fs().root())
}

fn cgroup(_: &Subject) -> Result<Vec<u8>> {
    Ok(b"0::/\n".to_vec())
}

/// Bytes of the process's memory that exec wrote the arguments or the environment to.
fn strings(subject: &Subject, range: impl FnOnce(&crate::mm::Layout) -> (u64, u64)) -> Result<Vec<u8>> {
    const MAX: u64 = 4 << 20;
    let Ok(task) = subject.task() else { return Ok(Vec::new()) };
    let Some(mm) = task.mm() else { return Ok(Vec::new()) };
    let (start, end) = range(&mm.layout());
    let mut bytes = alloc::vec![0; end.saturating_sub(start).min(MAX) as usize];
    let got = mm.read_partial(UserAddr(start), &mut bytes).unwrap_or(0);
    bytes.truncate(got);
    Ok(bytes)
}

fn cmdline(subject: &Subject) -> Result<Vec<u8>> {
    strings(subject, |layout| layout.args)
}

fn environ(subject: &Subject) -> Result<Vec<u8>> {
    strings(subject, |layout| layout.env)
}

/// As exec made it, on the stack.
fn auxv(subject: &Subject) -> Result<Vec<u8>> {
    strings(subject, |layout| layout.auxv)
}

fn comm(subject: &Subject) -> Result<Vec<u8>> {
    let mut name = subject.task()?.name_bytes().to_vec();
    name.push(b'\n');
    Ok(name)
}

fn set_comm(subject: &Subject, name: &[u8]) -> Result<()> {
    let task = subject.task()?;
    // Only threads of the same process may rename it.
    if sched::current().is_some_and(|me| !Arc::ptr_eq(&me.process, &task.process)) {
        return Err(EINVAL);
    }
    task.set_name(name);
    Ok(())
}

fn cwd(subject: &Subject) -> Result<Path> {
    Ok(subject.task().map_err(|_| ENOENT)?.fs().cwd())
}

fn cwd_text(subject: &Subject) -> Result<Vec<u8>> {
    let task = subject.task().map_err(|_| ENOENT)?;
    Ok(task.fs().cwd().display(&reader_root(&task)))
}

fn root(subject: &Subject) -> Result<Path> {
    Ok(subject.task().map_err(|_| ENOENT)?.fs().root())
}

fn root_text(subject: &Subject) -> Result<Vec<u8>> {
    let task = subject.task().map_err(|_| ENOENT)?;
    Ok(task.fs().root().display(&reader_root(&task)))
}

fn exe(subject: &Subject) -> Result<Vec<u8>> {
    subject.check_access()?;
    let process = subject.process()?;
    let exe = process.exe.lock().clone();
    Ok(exe.ok_or(ENOENT)?.path())
}

fn file(subject: &Subject) -> Result<Arc<File>> {
    let Subject::Fd(task, _, fd) = subject else { return Err(ENOENT) };
    task.upgrade().ok_or(ENOENT)?.files().get(*fd).map_err(|_| ENOENT)
}

pub(super) fn fd_path(subject: &Subject) -> Result<Path> {
    Ok(file(subject)?.path().clone())
}

pub(super) fn fd_text(subject: &Subject) -> Result<Vec<u8>> {
    let task = subject.task().map_err(|_| ENOENT)?;
    Ok(file(subject)?.path().display(&reader_root(&task)))
}

pub(super) fn fd_info(subject: &Subject) -> Result<Vec<u8>> {
    let Subject::Fd(task, _, fd) = subject else { return Err(ENOENT) };
    let file = file(subject)?;
    let mut flags = file.flags().bits();
    if task.upgrade().is_some_and(|t| t.files().close_on_exec(*fd).unwrap_or(false)) {
        flags |= crate::fs::OpenFlags::CLOEXEC.bits();
    }
    let position = if file.ops().seekable() { file.position() } else { 0 };
    let ino = file.stat().map_or(0, |s| s.ino);
    let mut out = String::new();
    let _ = write!(out, "pos:\t{position}\nflags:\t0{flags:o}\nmnt_id:\t{}\nino:\t{ino}\n", file.path().mount.id);
    file.ops().fdinfo(&mut out);
    Ok(out.into_bytes())
}

fn id_map(_: &Subject) -> Result<Vec<u8>> {
    Ok(b"         0          0 4294967295\n".to_vec())
}

fn setgroups(_: &Subject) -> Result<Vec<u8>> {
    Ok(b"allow\n".to_vec())
}

fn loginuid(_: &Subject) -> Result<Vec<u8>> {
    Ok(b"4294967295".to_vec())
}

fn io(subject: &Subject) -> Result<Vec<u8>> {
    subject.task()?;
    let names = ["rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"];
    Ok(names.iter().map(|n| format!("{n}: 0\n")).collect::<String>().into_bytes())
}

fn limits(subject: &Subject) -> Result<Vec<u8>> {
    const NAMES: [(&str, &str); 16] = [
        ("Max cpu time", "seconds"),
        ("Max file size", "bytes"),
        ("Max data size", "bytes"),
        ("Max stack size", "bytes"),
        ("Max core file size", "bytes"),
        ("Max resident set", "bytes"),
        ("Max processes", "processes"),
        ("Max open files", "files"),
        ("Max locked memory", "bytes"),
        ("Max address space", "bytes"),
        ("Max file locks", "locks"),
        ("Max pending signals", "signals"),
        ("Max msgqueue size", "bytes"),
        ("Max nice priority", ""),
        ("Max realtime priority", ""),
        ("Max realtime timeout", "us"),
    ];
    let mut limits = *subject.process()?.limits.lock();
    let mut out = format!("{:<26}{:<21}{:<21}{:<10}\n", "Limit", "Soft Limit", "Hard Limit", "Units");
    let show = |value: u64| if value == u64::MAX { String::from("unlimited") } else { format!("{value}") };
    for (number, (name, unit)) in NAMES.iter().enumerate() {
        let Some(Limit { soft, hard }) = limits.by_number(number as u32).copied() else { continue };
        let _ = writeln!(out, "{name:<26}{:<21}{:<21}{unit:<10}", show(soft), show(hard));
    }
    Ok(out.into_bytes())
}

/// The first columns of a line of maps.
fn map_head(vma: &crate::mm::Vma, device: (u64, u64), offset: u64) -> String {
    let bit = |flag, letter| if vma.prot.contains(flag) { letter } else { '-' };
    let (major, minor) = crate::fs::split_device(device.0);
    format!(
        "{:08x}-{:08x} {}{}{}{} {offset:08x} {major:02x}:{minor:02x} {} ",
        vma.start,
        vma.end,
        bit(Prot::READ, 'r'),
        bit(Prot::WRITE, 'w'),
        bit(Prot::EXEC, 'x'),
        if vma.flags.contains(VmaFlags::SHARED) { 's' } else { 'p' },
        device.1
    )
}

fn map_line(vma: &crate::mm::Vma, layout: &crate::mm::Layout) -> String {
    let (device, offset, name) = match &vma.kind {
        VmaKind::Object { pager, offset } => {
            let (device, inode, name) = pager.identity();
            ((device, inode), *offset, name)
        }
        VmaKind::Kernel { name, .. } => ((0, 0), 0, String::from(*name)),
        VmaKind::Anonymous => {
            let name = if vma.start <= layout.stack_top && layout.stack_top <= vma.end && layout.stack_top != 0 {
                "[stack]"
            } else if vma.start < layout.brk.next_multiple_of(4096)
                && layout.start_brk < vma.end
                && vma.start >= layout.start_brk & !4095
            {
                "[heap]"
            } else {
                ""
            };
            ((0, 0), 0, String::from(name))
        }
    };
    let mut text = map_head(vma, device, offset);
    if !name.is_empty() {
        while text.len() < 73 {
            text.push(' ');
        }
        // A newline in a name would forge a line.
        text.push_str(&name.replace('\n', "\\012"));
    }
    text.push('\n');
    text
}

fn maps(subject: &Subject) -> Result<Vec<u8>> {
    subject.check_access()?;
    let Some(mm) = subject.task()?.mm() else { return Ok(Vec::new()) };
    let layout = mm.layout();
    Ok(mm.mappings().iter().map(|vma| map_line(vma, &layout)).collect::<String>().into_bytes())
}

fn smaps(subject: &Subject) -> Result<Vec<u8>> {
    subject.check_access()?;
    let Some(mm) = subject.task()?.mm() else { return Ok(Vec::new()) };
    let layout = mm.layout();
    let mut out = String::new();
    for vma in mm.mappings() {
        out.push_str(&map_line(&vma, &layout));
        let resident = mm.resident_in(vma.start, vma.end) as usize * 4;
        let private = if vma.is_private() { resident } else { 0 };
        let anonymous = if matches!(vma.kind, VmaKind::Anonymous) { resident } else { 0 };
        let rows = [
            ("Size", vma.len() as usize / 1024),
            ("KernelPageSize", 4),
            ("MMUPageSize", 4),
            ("Rss", resident),
            ("Pss", resident),
            ("Shared_Clean", 0),
            ("Shared_Dirty", resident - private),
            ("Private_Clean", 0),
            ("Private_Dirty", private),
            ("Referenced", resident),
            ("Anonymous", anonymous),
            ("Swap", 0),
            ("SwapPss", 0),
            ("Locked", 0),
        ];
        for (name, value) in rows {
            let _ = writeln!(out, "{:<16}{value:>8} kB", format!("{name}:"));
        }
    }
    Ok(out.into_bytes())
}

fn oom_score(subject: &Subject) -> Result<Vec<u8>> {
    let process = subject.process()?;
    let total = crate::mm::frames::usage().0.max(1);
    let used = subject.task().ok().and_then(|t| t.mm()).map_or(0, |mm| mm.usage().1);
    let score = (used as i64 * 1000 / total as i64 + i64::from(process.oom_score_adj.load(Relaxed)) + 1000) * 2 / 3;
    Ok(line(score.clamp(0, 2000)))
}

fn oom_score_adj(subject: &Subject) -> Result<Vec<u8>> {
    Ok(line(subject.process()?.oom_score_adj.load(Relaxed)))
}

fn set_oom_score_adj(subject: &Subject, value: &[u8]) -> Result<()> {
    let value: i32 = core::str::from_utf8(value).ok().and_then(|v| v.trim().parse().ok()).ok_or(EINVAL)?;
    if !(-1000..=1000).contains(&value) {
        return Err(EINVAL);
    }
    let process = subject.process()?;
    if value < process.oom_score_adj.load(Relaxed) && sched::current().is_some_and(|me| !me.capable(cap::SYS_RESOURCE))
    {
        return Err(EACCES);
    }
    process.oom_score_adj.store(value, Relaxed);
    Ok(())
}

fn personality(subject: &Subject) -> Result<Vec<u8>> {
    Ok(format!("{:08x}\n", subject.process()?.personality.load(Relaxed)).into_bytes())
}

fn schedstat(subject: &Subject) -> Result<Vec<u8>> {
    let usage = subject.task()?.usage();
    Ok(format!("{} 0 {}\n", usage.cpu(), usage.voluntary + usage.involuntary).into_bytes())
}

fn wchan(subject: &Subject) -> Result<Vec<u8>> {
    subject.task()?;
    Ok(b"0".to_vec())
}

fn children(subject: &Subject) -> Result<Vec<u8>> {
    let pid = subject.process()?.pid;
    let children = crate::task::table::lock().children(pid);
    Ok(children.iter().map(|c| format!("{} ", c.pid)).collect::<String>().into_bytes())
}

/// Paths of mounts are shown against the root of their owner.
pub(super) fn task_root(subject: &Subject) -> Result<Path> {
    match subject.task() {
        Ok(task) => Ok(task.fs().root()),
        Err(_) => namespace_root().ok_or(ESRCH),
    }
}
