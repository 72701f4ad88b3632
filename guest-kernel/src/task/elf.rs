//! ELF headers of programs, checked: every field is hostile (elf(5)).

use alloc::vec::Vec;

use sentry_abi::layout::{PAGE_SIZE, USER_TOP};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::errno::{EINVAL, EIO, ENOEXEC, ENOMEM, Result};

const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
pub const PF_X: u32 = 1;
pub const PF_W: u32 = 2;
pub const PF_R: u32 = 4;

/// Bytes of the file header and of one program header.
pub const EHDR_SIZE: usize = 64;
pub const PHDR_SIZE: usize = 56;
/// Linux refuses longer tables.
const MAX_PHDRS: usize = 65536 / PHDR_SIZE;
/// Largest alignment honoured (a huge page of the biggest size).
const MAX_ALIGN: u64 = 1 << 30;
const PATH_MAX: u64 = 4096;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Ehdr {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    phoff: u64,
    shoff: u64,
    flags: u32,
    ehsize: u16,
    phentsize: u16,
    phnum: u16,
    shentsize: u16,
    shnum: u16,
    shstrndx: u16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Phdr {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

/// What the file header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// ET_DYN: may be loaded anywhere.
    pub relocatable: bool,
    pub entry: u64,
    pub phoff: u64,
    pub phnum: usize,
}

/// A part of the file that is mapped. Addresses before relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub address: u64,
    pub file_size: u64,
    pub memory_size: u64,
    /// PF_* bits.
    pub flags: u32,
}

impl Segment {
    pub fn start_page(&self) -> u64 {
        self.address & !(PAGE_SIZE - 1)
    }

    pub fn end(&self) -> u64 {
        self.address + self.memory_size
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Ascending, disjoint, at least one.
    pub segments: Vec<Segment>,
    /// Where in the file the interpreter's path is, and its length with the NUL.
    pub interpreter: Option<(u64, usize)>,
    pub stack_executable: bool,
    /// Alignment that a load address must keep.
    pub align: u64,
    /// Address of the program headers in memory, before relocation; 0 when they are not mapped.
    pub phdr: u64,
}

/// Checks the first bytes of a file; ENOEXEC when this is not a program for us.
pub fn parse_header(bytes: &[u8]) -> Result<Header> {
    let (header, _) = Ehdr::read_from_prefix(bytes).map_err(|_| ENOEXEC)?;
    let ident = &header.ident;
    let ours = ident[..4] == *b"\x7fELF" && ident[4] == 2 && ident[5] == 1;
    if !ours || header.machine != EM_X86_64 || !matches!(header.kind, ET_EXEC | ET_DYN) {
        return Err(ENOEXEC);
    }
    let phnum = header.phnum as usize;
    if header.phentsize as usize != PHDR_SIZE || phnum == 0 || phnum > MAX_PHDRS {
        return Err(ENOEXEC);
    }
    header.phoff.checked_add((phnum * PHDR_SIZE) as u64).ok_or(ENOEXEC)?;
    Ok(Header { relocatable: header.kind == ET_DYN, entry: header.entry, phoff: header.phoff, phnum })
}

/// Checks the program headers; `bytes` holds all of them.
pub fn parse_program(header: &Header, bytes: &[u8]) -> Result<Program> {
    let mut program =
        Program { segments: Vec::new(), interpreter: None, stack_executable: true, align: PAGE_SIZE, phdr: 0 };
    let mut phdr_address = None;
    for entry in bytes.chunks_exact(PHDR_SIZE).take(header.phnum) {
        let ph = Phdr::read_from_bytes(entry).map_err(|_| ENOEXEC)?;
        match ph.kind {
            PT_LOAD if ph.memsz > 0 => program.add_segment(&ph)?,
            PT_INTERP if program.interpreter.is_none() => {
                if !(2..=PATH_MAX).contains(&ph.filesz) {
                    return Err(ENOEXEC);
                }
                program.interpreter = Some((ph.offset, ph.filesz as usize));
            }
            PT_PHDR => phdr_address = Some(ph.vaddr),
            PT_GNU_STACK => program.stack_executable = ph.flags & PF_X != 0,
            _ => {}
        }
    }
    if program.segments.is_empty() {
        return Err(ENOEXEC);
    }
    program.phdr = phdr_address.unwrap_or_else(|| {
        let holds = |s: &&Segment| s.offset <= header.phoff && header.phoff < s.offset + s.file_size;
        program.segments.iter().find(holds).map_or(0, |s| s.address + (header.phoff - s.offset))
    });
    Ok(program)
}

impl Program {
    fn add_segment(&mut self, ph: &Phdr) -> Result<()> {
        if ph.filesz > ph.memsz || ph.offset % PAGE_SIZE != ph.vaddr % PAGE_SIZE {
            return Err(EINVAL);
        }
        ph.offset.checked_add(ph.filesz).filter(|&end| end <= i64::MAX as u64).ok_or(EINVAL)?;
        let end = ph.vaddr.checked_add(ph.memsz).filter(|&end| end <= USER_TOP).ok_or(ENOMEM)?;
        if self.segments.last().is_some_and(|last| last.end() > ph.vaddr) {
            return Err(EINVAL);
        }
        // Alignments that are no power of two are ignored, as by Linux.
        if ph.align.is_power_of_two() && ph.align > self.align {
            self.align = ph.align.min(MAX_ALIGN);
        }
        debug_assert!(end > ph.vaddr);
        self.segments.push(Segment {
            offset: ph.offset,
            address: ph.vaddr,
            file_size: ph.filesz,
            memory_size: ph.memsz,
            flags: ph.flags,
        });
        Ok(())
    }

    /// First page and end of what the segments cover, before relocation.
    pub fn extent(&self) -> (u64, u64) {
        let first = self.segments.first().map_or(0, Segment::start_page);
        let end = self.segments.last().map_or(0, Segment::end);
        (first, end.next_multiple_of(PAGE_SIZE))
    }
}

/// The path in the bytes of a PT_INTERP segment.
pub fn interpreter_path(bytes: &[u8]) -> Result<&[u8]> {
    match bytes.split_last() {
        Some((0, text)) => Ok(text.split(|&b| b == 0).next().unwrap_or(text)),
        _ => Err(ENOEXEC),
    }
}

/// An interpreter and its optional argument.
pub type Script<'a> = (&'a [u8], Option<&'a [u8]>);

/// The interpreter and its optional argument in the first line of a script. `head` is the file's first 256 bytes, or all of
/// a shorter file. `None` when it is no script.
pub fn parse_script(head: &[u8]) -> Result<Option<Script<'_>>> {
    let Some(line) = head.strip_prefix(b"#!") else { return Ok(None) };
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let line = match line.iter().position(|&b| b == b'\n') {
        Some(end) => &line[..end],
        // A line that is cut off may only be cut in its argument.
        None if head.len() >= SCRIPT_HEAD => {
            let start = line.iter().position(|b| !blank(b)).ok_or(ENOEXEC)?;
            if !line[start..].iter().any(blank) {
                return Err(ENOEXEC);
            }
            line
        }
        None => line,
    };
    let line = line.split(|&b| b == 0).next().unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Err(ENOEXEC);
    }
    match line.iter().position(blank) {
        Some(end) => Ok(Some((&line[..end], Some(line[end..].trim_ascii())))),
        None => Ok(Some((line, None))),
    }
}

/// How much of a file decides what it is (Linux's BINPRM_BUF_SIZE).
pub const SCRIPT_HEAD: usize = 256;

/// What a short read of a header means.
pub fn complete(got: usize, wanted: usize) -> Result<()> {
    if got == wanted { Ok(()) } else { Err(EIO) }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn header() -> Vec<u8> {
        let h = Ehdr {
            ident: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
            kind: ET_DYN,
            machine: EM_X86_64,
            version: 1,
            entry: 0x1000,
            phoff: 64,
            shoff: 0,
            flags: 0,
            ehsize: 64,
            phentsize: 56,
            phnum: 1,
            shentsize: 0,
            shnum: 0,
            shstrndx: 0,
        };
        h.as_bytes().to_vec()
    }

    fn load(offset: u64, vaddr: u64, filesz: u64, memsz: u64) -> Vec<u8> {
        let ph = Phdr { kind: PT_LOAD, flags: 5, offset, vaddr, paddr: 0, filesz, memsz, align: 0x1000 };
        ph.as_bytes().to_vec()
    }

    fn program(phdrs: &[Vec<u8>]) -> Result<Program> {
        let header = Header { relocatable: true, entry: 0, phoff: 64, phnum: phdrs.len() };
        parse_program(&header, &phdrs.concat())
    }

    #[test]
    fn a_good_header_is_read() {
        let h = parse_header(&header()).unwrap();
        assert_eq!(h, Header { relocatable: true, entry: 0x1000, phoff: 64, phnum: 1 });
        let p = program(&[load(0, 0, 0x500, 0x500), load(0x1800, 0x2800, 0x10, 0x3000)]).unwrap();
        assert_eq!(p.extent(), (0, 0x6000));
        assert_eq!(p.phdr, 64);
    }

    #[test]
    fn foreign_and_cut_headers_are_refused() {
        assert_eq!(parse_header(&header()[..63]), Err(ENOEXEC));
        for (at, value) in [(0, 0), (4, 1), (5, 2), (16, 1), (18, 3), (54, 32), (56, 0)] {
            let mut bytes = header();
            bytes[at] = value;
            assert_eq!(parse_header(&bytes), Err(ENOEXEC), "byte {at}");
        }
        let mut bytes = header();
        bytes[32..40].fill(0xff);
        assert_eq!(parse_header(&bytes), Err(ENOEXEC));
    }

    #[test]
    fn bad_segments_are_refused() {
        assert!(program(&[load(0, 0, 2, 1)]).is_err(), "more in the file than in memory");
        assert!(program(&[load(1, 0, 1, 1)]).is_err(), "offset and address do not agree");
        assert!(program(&[load(0, 0x4000, 16, 16), load(0, 0x1000, 16, 16)]).is_err(), "descending");
        assert!(program(&[load(0, 0x1000, 16, 0x2000), load(0, 0x2000, 16, 16)]).is_err(), "overlapping");
        assert!(program(&[load(0, 0, 16, u64::MAX)]).is_err(), "wraps");
        assert!(program(&[load(0, USER_TOP, 16, 16)]).is_err(), "outside");
        assert!(program(&[load(!0xfff, 0, 0x2000, 0x2000)]).is_err(), "file offset wraps");
        assert!(program(&[]).is_err(), "nothing to load");
    }

    #[test]
    fn scripts() {
        assert_eq!(parse_script(b"\x7fELF"), Ok(None));
        assert_eq!(parse_script(b"#!/bin/sh\n"), Ok(Some((&b"/bin/sh"[..], None))));
        assert_eq!(parse_script(b"#! /usr/bin/env  a b \nx"), Ok(Some((&b"/usr/bin/env"[..], Some(&b"a b"[..])))));
        assert_eq!(parse_script(b"#!/bin/sh"), Ok(Some((&b"/bin/sh"[..], None))));
        assert_eq!(parse_script(b"#! \n"), Err(ENOEXEC));
        let mut long = vec![b'x'; SCRIPT_HEAD];
        long[..3].copy_from_slice(b"#!/");
        assert_eq!(parse_script(&long), Err(ENOEXEC));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), phnum in 0usize..8) {
            let _ = parse_header(&bytes);
            let header = Header { relocatable: true, entry: 0, phoff: 64, phnum };
            if let Ok(p) = parse_program(&header, &bytes) {
                let (start, end) = p.extent();
                prop_assert!(start < end);
            }
            let _ = parse_script(&bytes);
            let _ = interpreter_path(&bytes);
        }
    }
}
