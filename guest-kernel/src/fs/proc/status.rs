//! stat, statm and status of a process or thread.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};

use sentry_abi::layout::PAGE_SIZE;

use super::Subject;
use crate::{
    errno::{ESRCH, Result},
    mm::{AddressSpace, Prot, VmaKind},
    sched,
    signal::SigSet,
    task::{Process, Resource, Task, times::Usage},
};

/// Clock ticks a second that times are shown in (USER_HZ).
const TICK_NS: u64 = 10_000_000;

/// A subject's parts: no task for a zombie.
struct Parts {
    process: Arc<Process>,
    task: Option<Arc<Task>>,
    /// The whole process, not one thread.
    whole: bool,
}

fn parts(subject: &Subject) -> Result<Parts> {
    match subject {
        Subject::Process(process, _) => {
            let process = process.upgrade().ok_or(ESRCH)?;
            let task = process.main_thread();
            Ok(Parts { process, task, whole: true })
        }
        _ => {
            let task = subject.task()?;
            Ok(Parts { process: task.process.clone(), task: Some(task), whole: false })
        }
    }
}

impl Parts {
    fn state(&self) -> (char, &'static str) {
        let state = self.process.state.lock();
        if state.zombie.is_some() {
            return ('Z', "zombie");
        }
        let stopped = state.stop.is_some() && state.stopped_threads > 0;
        // The parent has been told: the last thread may still be on its way to its wait.
        let all_stopped = stopped && state.stopped_threads >= state.threads.len();
        drop(state);
        let Some(task) = &self.task else { return ('Z', "zombie") };
        if all_stopped || stopped && task.sched.is_parked() {
            ('T', "stopped")
        } else if task.sched.is_parked() {
            ('S', "sleeping")
        } else {
            ('R', "running")
        }
    }

    fn id(&self) -> i32 {
        match &self.task {
            Some(task) if !self.whole => task.tid(),
            _ => self.process.pid,
        }
    }

    fn mm(&self) -> Option<Arc<AddressSpace>> {
        self.task.as_ref().and_then(|t| t.mm())
    }

    fn name(&self) -> Vec<u8> {
        self.task.as_ref().map_or_else(Vec::new, |t| t.name_bytes().to_vec())
    }

    fn usage(&self) -> Usage {
        match &self.task {
            Some(task) if !self.whole => task.usage(),
            _ => self.process.usage(),
        }
    }

    fn threads(&self) -> usize {
        self.process.state.lock().threads.len()
    }
}

fn ticks(ns: u64) -> u64 {
    ns / TICK_NS
}

pub(super) fn stat(subject: &Subject) -> Result<Vec<u8>> {
    let p = parts(subject)?;
    let process = &p.process;
    let session = process.session();
    let (tty, foreground) = session.terminal().map_or((0, -1), |t| (t.device() as u32 as i32, t.foreground()));
    let usage = p.usage();
    let dead = *process.dead_children.lock();
    let nice = p.task.as_ref().map_or(0, |t| t.nice.load(Relaxed));
    let (priority, policy) = p.task.as_ref().map_or((0, 0), |t| (t.priority.load(Relaxed), t.policy.load(Relaxed)));
    let shown = if priority > 0 { -1 - priority } else { 20 + nice };
    let mm = p.mm();
    let (size, resident) = mm.as_ref().map_or((0, 0), |mm| mm.usage());
    // Addresses are for those who may look inside.
    let layout = if subject.check_access().is_ok() {
        mm.as_ref().map(|mm| mm.layout()).unwrap_or_default()
    } else {
        Default::default()
    };
    let limits = *process.limits.lock();
    let started = p.task.as_ref().filter(|_| !p.whole).map_or(process.started, |t| t.started);
    let start = ticks(started.saturating_sub(crate::time::started()));
    let signals = Signals::of(&p);
    let exit = process.zombie().unwrap_or(0);
    let last_cpu = p.task.as_ref().map_or(0, |t| t.sched.last_cpu());
    let mut out = Vec::new();
    out.extend_from_slice(format!("{} (", p.id()).as_bytes());
    out.extend_from_slice(&p.name());
    let text = format!(
        ") {} {} {} {} {tty} {foreground} {} {} {} 0 0 {} {} {} {} {shown} {nice} {} 0 {start} {size} {} {} {} {} {} 0 0 {} {} {} {} 0 0 0 {} {last_cpu} {priority} {policy} 0 0 0 {} {} {} {} {} {} {} {exit}\n",
        p.state().0,
        process.ppid(),
        process.pgid(),
        session.sid,
        0x0040_0000, // PF_RANDOMIZE: the only flag that holds
        usage.minor_faults,
        dead.minor_faults,
        ticks(usage.user),
        ticks(usage.system),
        ticks(dead.user),
        ticks(dead.system),
        p.threads(),
        resident / PAGE_SIZE,
        limits.soft(Resource::Rss),
        layout.start_code,
        layout.end_code,
        layout.stack_top,
        signals.pending.0 & 0x7fff_ffff,
        signals.blocked.0 & 0x7fff_ffff,
        signals.ignored.0 & 0x7fff_ffff,
        signals.caught.0 & 0x7fff_ffff,
        process.exit_signal.load(Relaxed),
        layout.start_data,
        layout.end_data,
        layout.start_brk,
        layout.args.0,
        layout.args.1,
        layout.env.0,
        layout.env.1,
    );
    out.extend_from_slice(text.as_bytes());
    Ok(out)
}

/// Sizes in bytes of the parts of an address space.
#[derive(Default)]
struct Sizes {
    total: u64,
    resident: u64,
    peak: u64,
    data: u64,
    stack: u64,
    text: u64,
    library: u64,
    shared: u64,
}

fn sizes(mm: &AddressSpace) -> Sizes {
    let (total, resident) = mm.usage();
    let layout = mm.layout();
    let mut s = Sizes { total, resident, peak: mm.peak(), ..Sizes::default() };
    for vma in mm.mappings() {
        let len = vma.len();
        if vma.start <= layout.stack_top && layout.stack_top <= vma.end {
            s.stack += len;
        } else if vma.prot.contains(Prot::EXEC) && !matches!(vma.kind, VmaKind::Anonymous) {
            if vma.start < layout.end_code && layout.start_code < vma.end { s.text += len } else { s.library += len }
        } else if vma.prot.contains(Prot::WRITE) && vma.is_private() {
            s.data += len;
        } else if !vma.is_private() {
            s.shared += len;
        }
    }
    s
}

pub(super) fn statm(subject: &Subject) -> Result<Vec<u8>> {
    let s = parts(subject)?.mm().map(|mm| sizes(&mm)).unwrap_or_default();
    let pages = |bytes: u64| bytes / PAGE_SIZE;
    let shared = s.shared.min(s.resident);
    let text = format!(
        "{} {} {} {} 0 {} 0\n",
        pages(s.total),
        pages(s.resident),
        pages(shared),
        pages(s.text),
        pages(s.data + s.stack)
    );
    Ok(text.into_bytes())
}

struct Signals {
    pending: SigSet,
    shared: SigSet,
    blocked: SigSet,
    ignored: SigSet,
    caught: SigSet,
    queued: usize,
}

impl Signals {
    fn of(p: &Parts) -> Signals {
        let (caught, ignored) = p.process.handlers().summary();
        let (shared, queued) = {
            let state = p.process.state.lock();
            (state.pending.set(), state.pending.len())
        };
        let (pending, blocked) = match &p.task {
            Some(task) => (task.pending.lock().set(), task.blocked()),
            None => (SigSet(0), SigSet(0)),
        };
        Signals { pending, shared, blocked, ignored, caught, queued }
    }
}

pub(super) fn status(subject: &Subject) -> Result<Vec<u8>> {
    let p = parts(subject)?;
    let process = &p.process;
    let mut out = String::from("Name:\t");
    for byte in p.name() {
        match byte {
            b'\n' => out.push_str("\\n"),
            b'\\' => out.push_str("\\\\"),
            byte => out.push(byte as char),
        }
    }
    let (letter, word) = p.state();
    let umask = p.task.as_ref().map_or(0, |t| t.fs().umask());
    let (id, pid) = (p.id(), process.pid);
    let _ = write!(
        out,
        "\nUmask:\t{umask:04o}\nState:\t{letter} ({word})\nTgid:\t{pid}\nNgid:\t0\nPid:\t{id}\nPPid:\t{}\nTracerPid:\t0\n",
        process.ppid()
    );
    let creds = p.task.as_ref().map(|t| t.creds());
    if let Some(c) = &creds {
        let _ = writeln!(out, "Uid:\t{}\t{}\t{}\t{}", c.uid, c.euid, c.suid, c.fsuid);
        let _ = writeln!(out, "Gid:\t{}\t{}\t{}\t{}", c.gid, c.egid, c.sgid, c.fsgid);
        let groups: String = c.groups.iter().map(|g| format!("{g} ")).collect();
        let slots = p.task.as_ref().map_or(0, |t| t.files().capacity());
        let _ = writeln!(out, "FDSize:\t{slots}\nGroups:\t{groups}");
    }
    let _ =
        writeln!(out, "NStgid:\t{pid}\nNSpid:\t{id}\nNSpgid:\t{}\nNSsid:\t{}", process.pgid(), process.session().sid);
    if let Some(mm) = p.mm() {
        let s = sizes(&mm);
        let file = s.shared.min(s.resident);
        let rows = [
            ("VmPeak", s.total),
            ("VmSize", s.total),
            ("VmLck", 0),
            ("VmPin", 0),
            ("VmHWM", s.peak),
            ("VmRSS", s.resident),
            ("RssAnon", s.resident - file),
            ("RssFile", 0),
            ("RssShmem", file),
            ("VmData", s.data),
            ("VmStk", s.stack),
            ("VmExe", s.text),
            ("VmLib", s.library),
            ("VmPTE", s.resident / 512),
            ("VmSwap", 0),
        ];
        for (name, bytes) in rows {
            let _ = writeln!(out, "{name}:\t{:>8} kB", bytes / 1024);
        }
        let _ = writeln!(out, "CoreDumping:\t0\nTHP_enabled:\t0");
    }
    let signals = Signals::of(&p);
    let limit = process.limits.lock().soft(Resource::Sigpending);
    let _ = writeln!(out, "Threads:\t{}\nSigQ:\t{}/{limit}", p.threads(), signals.queued);
    for (name, set) in [
        ("SigPnd", signals.pending),
        ("ShdPnd", signals.shared),
        ("SigBlk", signals.blocked),
        ("SigIgn", signals.ignored),
        ("SigCgt", signals.caught),
    ] {
        let _ = writeln!(out, "{name}:\t{:016x}", set.0);
    }
    if let Some(c) = &creds {
        for (name, caps) in [
            ("CapInh", c.caps.inheritable),
            ("CapPrm", c.caps.permitted),
            ("CapEff", c.caps.effective),
            ("CapBnd", c.caps.bounding),
            ("CapAmb", c.caps.ambient),
        ] {
            let _ = writeln!(out, "{name}:\t{caps:016x}");
        }
        let _ = writeln!(out, "NoNewPrivs:\t{}", u8::from(c.no_new_privs));
    }
    let cpus = sched::cpus_online();
    let usage = p.usage();
    let mask = if cpus >= 64 { u64::MAX } else { (1 << cpus) - 1 };
    let allowed = p.task.as_ref().map_or(mask, |t| t.affinity.load(Relaxed) & mask);
    let _ = write!(
        out,
        "Seccomp:\t0\nSeccomp_filters:\t0\nSpeculation_Store_Bypass:\tvulnerable\nCpus_allowed:\t{allowed:x}\nCpus_allowed_list:\t{}\nMems_allowed:\t1\nMems_allowed_list:\t0\nvoluntary_ctxt_switches:\t{}\nnonvoluntary_ctxt_switches:\t{}\n",
        super::system::cpu_list(allowed),
        usage.voluntary,
        usage.involuntary
    );
    Ok(out.into_bytes())
}
