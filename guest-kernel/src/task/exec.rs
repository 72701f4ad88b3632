//! execve(2): from a file to an address space with a program in it, and the change of a task to that program.

use alloc::{sync::Arc, vec, vec::Vec};
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use sentry_abi::{
    context::Registers,
    layout::{PAGE_SIZE, USER_TOP},
};

use super::{
    Creds, Current, Limits, Resource,
    elf::{self, Program, Segment},
    stack::{self, StackRequest},
    table,
};
use crate::{
    arch,
    counters::{Counter, count},
    errno::{EACCES, EINVAL, ELIBBAD, ELOOP, ENOEXEC, ENOMEM, Result},
    mm::{AddressSpace, Layout, MapRequest, Pager, Prot, SharedPages, VmaFlags, VmaKind, io::IoDst, user::UserAddr},
    random, time,
};

/// Who owns a program file: decides about set-user-ID.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileOwner {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The mount forbids set-user-ID.
    pub nosuid: bool,
}

/// A regular file opened for execution: permission to execute has been checked.
pub trait ExecFile: Send + Sync {
    /// Reads at `offset`; fewer bytes only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;
    /// Supplies the pages of mappings.
    fn pager(&self) -> Result<Arc<dyn Pager>>;
    /// Absolute path, for /proc/pid/exe.
    fn path(&self) -> Vec<u8>;
    fn owner(&self) -> FileOwner;
    /// Where it is in the tree, for the link /proc/pid/exe.
    fn place(&self) -> Option<crate::fs::Path> {
        None
    }
}

/// Opens a program by path, as the task that executes it.
pub type Open<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Arc<dyn ExecFile>>;

pub struct Request {
    pub file: Arc<dyn ExecFile>,
    /// As the caller named it: for the task's name, AT_EXECFN and scripts.
    pub path: Vec<u8>,
    pub argv: Vec<Vec<u8>>,
    pub envp: Vec<Vec<u8>>,
}

/// A program ready to run.
pub struct Image {
    pub mm: Arc<AddressSpace>,
    pub registers: Registers,
    pub file: Arc<dyn ExecFile>,
    pub creds: Creds,
    /// The program has more rights than its caller.
    pub secure: bool,
    pub name: Vec<u8>,
}

/// How deep scripts may be interpreted by scripts.
const MAX_SCRIPTS: usize = 5;
/// personality(2): ADDR_NO_RANDOMIZE.
pub const ADDR_NO_RANDOMIZE: u32 = 0x004_0000;
/// Where position-independent programs go, as on Linux.
const PIE_BASE: u64 = (USER_TOP / 3 * 2) & !(PAGE_SIZE - 1);

/// Loads a program for a task with these credentials.
pub fn load(mut request: Request, creds: &Creds, limits: &Limits, personality: u32, open: Open<'_>) -> Result<Image> {
    if request.argv.is_empty() {
        // A program without its name is a known way to confuse set-user-ID programs; Linux gives it an empty one.
        request.argv.push(Vec::new());
    }
    let name = request.path.rsplit(|&b| b == b'/').next().unwrap_or_default().to_vec();
    let mut file = request.file;
    let mut argv = request.argv;
    let mut script_path = request.path.clone();
    for depth in 0.. {
        let mut head = [0; elf::SCRIPT_HEAD];
        let got = file.read_at(0, &mut head)?;
        let Some((interpreter, argument)) = elf::parse_script(&head[..got])? else { break };
        if depth == MAX_SCRIPTS {
            return Err(ELOOP);
        }
        let mut new = vec![interpreter.to_vec()];
        new.extend(argument.map(<[u8]>::to_vec));
        new.push(core::mem::replace(&mut script_path, interpreter.to_vec()));
        new.extend(argv.drain(..).skip(1));
        argv = new;
        file = open(interpreter)?;
    }
    let (creds, secure) = creds.after_exec(&file.owner());
    let stack_limit = limits.soft(Resource::Stack);
    let size: usize = argv.iter().chain(&request.envp).map(|s| s.len() + 9).sum();
    if size as u64 > stack::limit(stack_limit) {
        return Err(crate::errno::E2BIG);
    }

    let (header, program) = read_program(&*file)?;
    let mm = AddressSpace::new()?;
    mm.set_limits(stack_limit, limits.soft(Resource::As), limits.soft(Resource::Data));
    let random = |bits: u32| {
        if personality & ADDR_NO_RANDOMIZE != 0 { 0 } else { (random::next_u64() & ((1 << bits) - 1)) * PAGE_SIZE }
    };
    let stack_top = (USER_TOP - random(22)) & !(PAGE_SIZE - 1);
    let gap = stack_limit.clamp(128 << 20, USER_TOP / 6 * 5) + (1 << 20);
    let mmap_base = (stack_top - gap - random(28)) & !(PAGE_SIZE - 1);
    mm.set_layout(Layout { mmap_base, stack_top, ..Layout::default() });

    let interpreter = match program.interpreter {
        Some((at, len)) => {
            let mut text = vec![0; len];
            elf::complete(file.read_at(at, &mut text)?, len)?;
            Some(open(elf::interpreter_path(&text)?)?)
        }
        None => None,
    };
    let (first, end) = program.extent();
    let bias = if header.relocatable && interpreter.is_some() {
        let base = (PIE_BASE + random(28)) & !(program.align - 1);
        base.wrapping_sub(first)
    } else if header.relocatable {
        find_place(&mm, &program)?.wrapping_sub(first)
    } else {
        0
    };
    map_program(&mm, &*file, &program, bias)?;
    let entry = header.entry.wrapping_add(bias);

    let (start, base) = match &interpreter {
        Some(file) => {
            // Errors of the interpreter are told apart, as by Linux.
            let (header, program) = read_program(&**file).map_err(|_| ELIBBAD)?;
            let bias = if header.relocatable { find_place(&mm, &program)?.wrapping_sub(program.extent().0) } else { 0 };
            map_program(&mm, &**file, &program, bias)?;
            (header.entry.wrapping_add(bias), bias)
        }
        None => (entry, 0),
    };
    if start >= USER_TOP || entry >= USER_TOP {
        return Err(EINVAL);
    }

    let brk = if header.relocatable && interpreter.is_none() { PIE_BASE } else { end.wrapping_add(bias) };
    let start_brk = brk + random(13);
    let phdr = if program.phdr == 0 { 0 } else { program.phdr.wrapping_add(bias) };
    let vdso = time::vdso::map(&mm)?;
    let mut auxv = vec![
        (stack::AT_HWCAP, arch::cpu_features()),
        (stack::AT_PAGESZ, PAGE_SIZE),
        (stack::AT_CLKTCK, 100),
        (stack::AT_PHDR, phdr),
        (stack::AT_PHENT, elf::PHDR_SIZE as u64),
        (stack::AT_PHNUM, header.phnum as u64),
        (stack::AT_BASE, base),
        (stack::AT_FLAGS, 0),
        (stack::AT_ENTRY, entry),
        (stack::AT_UID, creds.uid as u64),
        (stack::AT_EUID, creds.euid as u64),
        (stack::AT_GID, creds.gid as u64),
        (stack::AT_EGID, creds.egid as u64),
        (stack::AT_SECURE, secure as u64),
        (stack::AT_HWCAP2, 0),
        (stack::AT_MINSIGSTKSZ, minimum_signal_stack()),
    ];
    auxv.extend(vdso.map(|at| (stack::AT_SYSINFO_EHDR, at)));
    let stack = stack::build(
        &mm,
        &StackRequest {
            top: stack_top,
            executable: program.stack_executable,
            argv: &argv,
            envp: &request.envp,
            path: &request.path,
            auxv: &auxv,
            limit: stack_limit,
        },
    )?;
    let code = |s: &&Segment| s.flags & elf::PF_X != 0;
    let (text, data) = (program.segments.iter().find(code), program.segments.iter().rfind(|s| !code(s)));
    let place = |s: Option<&Segment>| s.map_or((0, 0), |s| (s.address.wrapping_add(bias), s.end().wrapping_add(bias)));
    let (start_code, end_code) = place(text);
    let (start_data, end_data) = place(data);
    mm.set_layout(Layout {
        start_code,
        end_code,
        start_data,
        end_data,
        start_brk,
        brk: start_brk,
        stack_top,
        mmap_base,
        args: stack.args,
        env: stack.env,
        auxv: stack.auxv,
    });
    let registers = Registers {
        rip: start,
        rsp: stack.sp,
        cs: sentry_abi::context::USER_CS,
        ss: sentry_abi::context::USER_SS,
        rflags: 0x202,
        orig_rax: u64::MAX,
        ..Registers::default()
    };
    Ok(Image { mm, registers, file, creds, secure, name })
}

/// What AT_MINSIGSTKSZ tells: a frame with all extended state and room for a handler.
fn minimum_signal_stack() -> u64 {
    arch::xstate::size() as u64 + 1024
}

fn read_program(file: &dyn ExecFile) -> Result<(elf::Header, Program)> {
    let mut head = [0; elf::EHDR_SIZE];
    let got = file.read_at(0, &mut head)?;
    let header = elf::parse_header(&head[..got])?;
    let mut table = vec![0; header.phnum * elf::PHDR_SIZE];
    if file.read_at(header.phoff, &mut table)? != table.len() {
        return Err(ENOEXEC);
    }
    let program = elf::parse_program(&header, &table)?;
    Ok((header, program))
}

/// An address in the mmap area where the program fits, aligned as it asks.
fn find_place(mm: &AddressSpace, program: &Program) -> Result<u64> {
    let (first, end) = program.extent();
    let len = (end - first).checked_add(program.align - PAGE_SIZE).ok_or(ENOMEM)?;
    let at = mm.map(MapRequest {
        address: 0,
        len,
        prot: Prot::empty(),
        max_prot: Prot::empty(),
        flags: VmaFlags::empty(),
        kind: VmaKind::Anonymous,
        fixed: false,
        no_replace: false,
    })?;
    // Nobody else maps into a new address space.
    mm.unmap(at, len)?;
    Ok(at.next_multiple_of(program.align))
}

fn map_program(mm: &AddressSpace, file: &dyn ExecFile, program: &Program, bias: u64) -> Result<()> {
    let pager = file.pager()?;
    for segment in &program.segments {
        let mut prot = Prot::empty();
        prot.set(Prot::READ, segment.flags & elf::PF_R != 0);
        prot.set(Prot::WRITE, segment.flags & elf::PF_W != 0);
        prot.set(Prot::EXEC, segment.flags & elf::PF_X != 0);
        let map = |address: u64, len: u64, kind: VmaKind| {
            let request = MapRequest {
                address,
                len,
                prot,
                max_prot: Prot::all(),
                flags: VmaFlags::empty(),
                kind,
                fixed: true,
                no_replace: false,
            };
            mm.map(request).map(drop)
        };
        let start = segment.start_page().wrapping_add(bias);
        let in_page = segment.address % PAGE_SIZE;
        let file_end = segment.address.wrapping_add(bias) + segment.file_size;
        let memory_end = segment.end().wrapping_add(bias).next_multiple_of(PAGE_SIZE);
        let mut mapped_to = start;
        if segment.file_size > 0 {
            let len = (in_page + segment.file_size).next_multiple_of(PAGE_SIZE);
            map(start, len, VmaKind::Object { pager: pager.clone(), offset: segment.offset - in_page })?;
            mapped_to = start + len;
            if segment.memory_size > segment.file_size && prot.contains(Prot::WRITE) && file_end < mapped_to {
                // What follows the file's bytes in their last page is .bss. A short file has no such page: Linux goes on too.
                let _ = mm.zero_partial(UserAddr(file_end), (mapped_to - file_end) as usize);
            }
        }
        if memory_end > mapped_to {
            map(mapped_to, memory_end - mapped_to, VmaKind::Anonymous)?;
        }
    }
    Ok(())
}

/// Turns the running task into the program. An error means that the task must end: it has passed the point of no return.
pub fn commit(cur: &mut Current, image: Image) -> Result<()> {
    count(Counter::Execs);
    let task = cur.task.clone();
    let process = task.process.clone();
    // The process is ending: so does this task, before it gets to the new program.
    super::exit::end_other_threads(&task).ok_or(crate::errno::EAGAIN)?;
    if !task.is_leader() {
        table::lock().rename_task(&task, process.pid);
    }
    super::exit::release_memory(cur);
    let old = task.creds();
    if image.secure || image.creds.euid != old.euid || image.creds.egid != old.egid {
        task.parent_death_signal.store(0, Relaxed);
    }
    process.dumpable.store(u32::from(!image.secure), Relaxed);
    process.set_handlers(process.handlers().after_exec());
    process.timers.delete_all_posix();
    process.exit_signal.store(crate::signal::set::SIGCHLD, Relaxed);
    process.has_executed.store(true, Relaxed);
    task.set_creds(image.creds);
    task.set_name(&image.name);
    task.clear_child_tid.store(0, SeqCst);
    task.robust_list.store(0, SeqCst);
    // Dropped without the lock: letting a file go may block.
    let old_program = process.exe.lock().replace(image.file);
    drop(old_program);
    // A table shared with other processes (CLONE_FILES without CLONE_VM) becomes the task's own.
    let files = task.files();
    let files = if Arc::strong_count(&files) > 2 {
        let own = files.copy();
        drop(task.set_files(own.clone()));
        own
    } else {
        files
    };
    files.close_for_exec();
    arch::leave_user_space();
    *task.mm.lock() = Some(image.mm.clone());
    cur.mm = image.mm;
    *cur.registers_mut() = image.registers;
    cur.xstate_mut().reset();
    cur.restart = None;
    cur.altstack = Default::default();
    cur.last_trap = Default::default();
    Ok(())
}

/// A program in memory: for tests and for what the sentry brings along.
pub struct MemoryFile {
    pages: Arc<SharedPages>,
    path: Vec<u8>,
}

impl MemoryFile {
    pub fn new(pages: Arc<SharedPages>, path: Vec<u8>) -> Self {
        MemoryFile { pages, path }
    }
}

impl ExecFile for MemoryFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.pages.read(&mut IoDst::kernel(buffer), offset)
    }

    fn pager(&self) -> Result<Arc<dyn Pager>> {
        Ok(self.pages.clone())
    }

    fn path(&self) -> Vec<u8> {
        self.path.clone()
    }

    fn owner(&self) -> FileOwner {
        FileOwner { mode: 0o100755, ..FileOwner::default() }
    }
}

/// Finds a program named without a slash along PATH, as execvp(3) does. Gives the path and the file, or the error that
/// matters most: a file that may not be executed comes before one that is not there.
pub fn search(name: &[u8], path: &[u8], open: Open<'_>) -> Result<(Vec<u8>, Arc<dyn ExecFile>)> {
    if name.contains(&b'/') {
        return open(name).map(|file| (name.to_vec(), file));
    }
    let mut result = Err(crate::errno::ENOENT);
    for dir in path.split(|&b| b == b':') {
        let mut full = if dir.is_empty() { b".".to_vec() } else { dir.to_vec() };
        full.push(b'/');
        full.extend_from_slice(name);
        match open(&full) {
            Ok(file) => return Ok((full, file)),
            Err(EACCES) => result = Err(EACCES),
            Err(_) => {}
        }
    }
    result
}
