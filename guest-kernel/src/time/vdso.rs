//! The vDSO (vdso(7)): clocks that applications read without a system call.
//!
//! Two pages of user memory, the same in every process: the data page with the conversion in force, which only this module
//! writes, and behind it an ELF image. A reading too far from the last sample, or an unstable TSC, becomes a system call,
//! which takes a new sample.

use alloc::{string::String, sync::Arc, vec, vec::Vec};

use sentry_abi::layout::PAGE_SIZE;

use super::Snapshot;
use crate::{
    arch::vdso::{CODE_OFFSET, code, functions},
    errno::Result,
    mm::{AddressSpace, Extent, FaultError, MapRequest, MappingList, Page, Pager, Prot, VmaFlags, VmaKind},
    sync::{Once, SpinLock},
};

const NAME: &str = "linux-vdso.so.1";
const VERSION: &str = "LINUX_2.6";

struct Pages {
    data: Arc<OnePage>,
    image: Arc<OnePage>,
}

/// A page of the sentry's that every process may map.
struct OnePage {
    page: Page,
    name: &'static str,
    mappings: MappingList,
}

impl Pager for OnePage {
    fn fault(&self, index: u64, _max: u64, _write: bool) -> Result<Extent, FaultError> {
        if index == 0 { Ok(Extent { gpa: self.page.gpa(), pages: 1 }) } else { Err(FaultError::PastEnd) }
    }

    fn mappings(&self) -> &MappingList {
        &self.mappings
    }

    fn identity(&self) -> (u64, u64, String) {
        (0, 0, String::from(self.name))
    }
}

static PAGES: Once<Pages> = Once::new();
/// Writers of the data page, and its sequence number.
static SEQUENCE: SpinLock<u64> = SpinLock::new(0);

/// Makes the pages once user memory exists. Without memory for them programs use system calls.
pub fn init() {
    let made = || -> Result<Pages> {
        let one = |name| Page::new().map(|page| Arc::new(OnePage { page, name, mappings: MappingList::new() }));
        Ok(Pages { data: one("[vvar]")?, image: one("[vdso]")? })
    };
    let Ok(pages) = made() else { return };
    pages.image.page.write(0, &image());
    PAGES.call_once(|| pages);
    update(&super::snapshot());
}

/// Publishes a new conversion.
pub fn update(snapshot: &Snapshot) {
    let Some(pages) = PAGES.get() else { return };
    let trusted = if super::tsc_is_stable() { ticks_of(snapshot, super::RESAMPLE) } else { 0 };
    let mut sequence = SEQUENCE.lock();
    let put = |at: usize, value: u64| pages.data.page.write(at * 8, &value.to_le_bytes());
    put(0, *sequence + 1);
    let fields = [
        snapshot.base_tsc,
        snapshot.mult,
        snapshot.monotonic,
        snapshot.realtime_offset,
        snapshot.boottime_offset,
        trusted,
    ];
    for (i, value) in fields.into_iter().enumerate() {
        put(i + 1, value);
    }
    *sequence += 2;
    put(0, *sequence);
}

fn ticks_of(snapshot: &Snapshot, ns: u64) -> u64 {
    (((ns as u128) << 32) / u128::from(snapshot.mult.max(1))) as u64
}

/// Maps both pages; gives the image's address for AT_SYSINFO_EHDR, or None when there is no vDSO.
pub fn map(mm: &AddressSpace) -> Result<Option<u64>> {
    let Some(pages) = PAGES.get() else { return Ok(None) };
    let map = |address, fixed, len, prot, kind| {
        mm.map(MapRequest {
            address,
            len,
            prot,
            max_prot: prot,
            flags: VmaFlags::empty(),
            kind,
            fixed,
            no_replace: false,
        })
    };
    let at = map(0, false, 2 * PAGE_SIZE, Prot::empty(), VmaKind::Anonymous)?;
    let object = |page: &Arc<OnePage>| VmaKind::Object { pager: page.clone(), offset: 0 };
    map(at, true, PAGE_SIZE, Prot::READ, object(&pages.data))?;
    map(at + PAGE_SIZE, true, PAGE_SIZE, Prot::READ | Prot::EXEC, object(&pages.image))?;
    Ok(Some(at + PAGE_SIZE))
}

/// The System V hash of symbol names.
fn elf_hash(name: &str) -> u32 {
    name.bytes().fold(0u32, |h, c| {
        let h = (h << 4).wrapping_add(u32::from(c));
        let high = h & 0xf000_0000;
        (h ^ high >> 24) & !high
    })
}

/// Little-endian fields, one after the other.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }
}

/// The ELF image: headers, dynamic symbols with their version, and the code. Addresses are offsets in the page.
fn image() -> Vec<u8> {
    const HEADERS: usize = 64 + 2 * 56;
    let functions = functions();
    let mut strings = vec![0u8];
    let mut string = |text: &str| {
        let at = strings.len() as u32;
        strings.extend_from_slice(text.as_bytes());
        strings.push(0);
        at
    };
    let (name, version) = (string(NAME), string(VERSION));

    let mut symbols = Bytes::default();
    symbols.0.resize(24, 0);
    for (symbol, at) in functions {
        // Global function in an arbitrary section; the size is of no interest to anyone.
        symbols.u32(string(symbol)).u8(0x12).u8(0).u16(1).u64((CODE_OFFSET + at) as u64).u64(16);
    }
    let count = functions.len() as u32 + 1;
    // One bucket: the chain is all symbols.
    let mut hash = Bytes::default();
    hash.u32(1).u32(count).u32(1).u32(0);
    for i in 1..count {
        hash.u32(if i + 1 < count { i + 1 } else { 0 });
    }
    let mut versym = Bytes::default();
    versym.u16(0);
    for _ in functions {
        versym.u16(2);
    }
    // Two definitions: the base, and the version of all symbols.
    let mut verdef = Bytes::default();
    verdef.u16(1).u16(1).u16(1).u16(1).u32(elf_hash(NAME)).u32(20).u32(28).u32(name).u32(0);
    verdef.u16(1).u16(0).u16(2).u16(1).u32(elf_hash(VERSION)).u32(20).u32(0).u32(version).u32(0);

    let mut out = vec![0u8; HEADERS];
    let mut place = |bytes: &[u8]| {
        out.resize(out.len().next_multiple_of(8), 0);
        let at = out.len() as u64;
        out.extend_from_slice(bytes);
        at
    };
    let hash_at = place(&hash.0);
    let symbols_at = place(&symbols.0);
    let versym_at = place(&versym.0);
    let verdef_at = place(&verdef.0);
    let strings_at = place(&strings);
    let mut dynamic = Bytes::default();
    for (tag, value) in [
        (4, hash_at),
        (5, strings_at),
        (6, symbols_at),
        (10, strings.len() as u64),
        (11, 24),
        (14, u64::from(name)),
        (0x6fff_fff0, versym_at),
        (0x6fff_fffc, verdef_at),
        (0x6fff_fffd, 2),
        (0, 0),
    ] {
        dynamic.u64(tag).u64(value);
    }
    let dynamic_at = place(&dynamic.0);
    assert!(out.len() <= CODE_OFFSET, "the vDSO's headers reach into its code");
    out.resize(CODE_OFFSET, 0);
    out.extend_from_slice(code());
    assert!(out.len() <= PAGE_SIZE as usize, "the vDSO does not fit its page");
    let size = out.len() as u64;

    let mut header = Bytes::default();
    header.0.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    header.u16(3).u16(62).u32(1).u64(0).u64(64).u64(0).u32(0).u16(64).u16(56).u16(2).u16(64).u16(0).u16(0);
    // PT_LOAD, readable and executable, then PT_DYNAMIC.
    header.u32(1).u32(5).u64(0).u64(0).u64(0).u64(size).u64(size).u64(PAGE_SIZE);
    let dynamic_size = dynamic.0.len() as u64;
    header.u32(2).u32(4).u64(dynamic_at).u64(dynamic_at).u64(dynamic_at).u64(dynamic_size).u64(dynamic_size).u64(8);
    out[..HEADERS].copy_from_slice(&header.0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_an_elf_object_with_versioned_functions() {
        let image = image();
        let file = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&image).unwrap();
        let segments: Vec<_> = file.segments().unwrap().iter().collect();
        assert_eq!(segments.len(), 2);
        let dynamic: Vec<_> = image[segments[1].p_offset as usize..][..segments[1].p_filesz as usize]
            .chunks_exact(16)
            .map(|e| (u64::from_le_bytes(e[..8].try_into().unwrap()), u64::from_le_bytes(e[8..].try_into().unwrap())))
            .collect();
        let value = |tag| dynamic.iter().find(|d| d.0 == tag).unwrap().1 as usize;
        let (strings, symbols, hash) = (value(5), value(6), value(4));
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        assert_eq!(elf_hash(VERSION), 0x3ae75f6);
        // Follow the one bucket's chain as a dynamic linker does.
        let mut names = Vec::new();
        let mut at = word(hash + 8);
        while at != 0 {
            let symbol = symbols + at as usize * 24;
            let name = &image[strings + word(symbol) as usize..];
            names.push(String::from_utf8(name.split(|&b| b == 0).next().unwrap().to_vec()).unwrap());
            let value = word(symbol + 8) as usize;
            assert!(value >= CODE_OFFSET && value < image.len());
            at = word(hash + 12 + at as usize * 4);
        }
        assert_eq!(names.len(), 5);
        assert!(names.contains(&String::from("__vdso_clock_gettime")));
    }
}
