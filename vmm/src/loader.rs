//! Puts the sentry image into kernel memory. linux-loader copies the segments; what it leaves open is checked here: class,
//! type, machine, the interpreter that must not be, and every segment against memory. The image relocates itself, and memory
//! that nothing has touched is zero, so .bss needs nothing.

use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use linux_loader::{
    elf::{EI_CLASS, ET_DYN, Elf64_Ehdr, Elf64_Phdr, PT_INTERP, PT_LOAD},
    loader::{Elf, KernelLoader},
};
use sentry_abi::layout::{IMAGE_BASE, KERNEL_BASE, KERNEL_SIZE, PAGE_SIZE};
use vm_memory::{ByteValued, GuestAddress};

use crate::memory::GuestMemory;

/// A loaded image. Guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    pub entry: u64,
    pub base: u64,
    /// Bytes from `base` to the end of the last segment, .bss included, in whole pages.
    pub size: u64,
}

const ELFCLASS64: u8 = 2;
const EM_X86_64: u16 = 62;

/// Loads a static PIE at `IMAGE_BASE`.
pub fn load(memory: &GuestMemory, image: &[u8]) -> Result<LoadedImage> {
    let loaded = check(image).context("the sentry image")?;
    Elf::load(memory.volatile(), Some(GuestAddress(IMAGE_BASE)), &mut Cursor::new(image), None)
        .context("loading the sentry image")?;
    Ok(loaded)
}

fn check(image: &[u8]) -> Result<LoadedImage> {
    let header: Elf64_Ehdr = object(image, 0).context("no ELF header")?;
    ensure!(header.e_ident.starts_with(b"\x7fELF"), "not an ELF file");
    ensure!(header.e_ident[EI_CLASS] == ELFCLASS64, "not a 64-bit ELF file");
    ensure!(header.e_type == ET_DYN, "ELF type {} is not a position-independent image", header.e_type);
    ensure!(header.e_machine == EM_X86_64, "ELF machine {} is not x86-64", header.e_machine);
    ensure!(usize::from(header.e_phentsize) == size_of::<Elf64_Phdr>(), "program header size {}", header.e_phentsize);

    let mut end = 0;
    let mut entry_in_segment = false;
    for index in 0..u64::from(header.e_phnum) {
        let at = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64);
        let segment: Elf64_Phdr = at
            .and_then(|at| object(image, at))
            .with_context(|| format!("program header {index} is outside the file"))?;
        if segment.p_type == PT_INTERP {
            bail!("it wants an interpreter");
        }
        if segment.p_type != PT_LOAD {
            continue;
        }
        let file_end = segment.p_offset.checked_add(segment.p_filesz);
        ensure!(
            file_end.is_some_and(|end| end <= image.len() as u64) && segment.p_filesz <= segment.p_memsz,
            "segment {index} is outside the file"
        );
        // linux-loader places by physical address, the image's relocation computes with virtual ones.
        ensure!(segment.p_paddr == segment.p_vaddr, "segment {index} has unequal virtual and physical addresses");
        let segment_end = segment.p_paddr.checked_add(segment.p_memsz);
        let limit = KERNEL_BASE + KERNEL_SIZE - IMAGE_BASE;
        let Some(segment_end) = segment_end.filter(|&end| end <= limit) else {
            bail!("segment {index} ends outside kernel memory")
        };
        end = segment_end.max(end);
        entry_in_segment |= (segment.p_paddr..segment_end).contains(&header.e_entry);
    }
    ensure!(entry_in_segment, "the entry point {:#x} is in no segment", header.e_entry);
    Ok(LoadedImage { entry: IMAGE_BASE + header.e_entry, base: IMAGE_BASE, size: end.next_multiple_of(PAGE_SIZE) })
}

fn object<T: ByteValued>(image: &[u8], at: u64) -> Option<T> {
    let mut value = T::zeroed();
    let at = usize::try_from(at).ok()?;
    let bytes = image.get(at..at.checked_add(size_of::<T>())?)?;
    value.as_mut_slice().copy_from_slice(bytes);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        image::{SENTRY, SENTRY_SHA256},
        memory::{MemoryConfig, UserBacking},
    };

    fn error(edit: impl FnOnce(&mut Elf64_Ehdr, &mut Vec<u8>)) -> String {
        let mut image = SENTRY.to_vec();
        let mut header: Elf64_Ehdr = object(&image, 0).unwrap();
        edit(&mut header, &mut image);
        image[..size_of::<Elf64_Ehdr>()].copy_from_slice(header.as_slice());
        format!("{:#}", check(&image).unwrap_err())
    }

    fn edit_segment(header: &Elf64_Ehdr, image: &mut [u8], edit: impl FnOnce(&mut Elf64_Phdr)) {
        for index in 0..header.e_phnum as usize {
            let at = header.e_phoff as usize + index * size_of::<Elf64_Phdr>();
            let mut segment: Elf64_Phdr = object(image, at as u64).unwrap();
            if segment.p_type == PT_LOAD {
                edit(&mut segment);
                image[at..at + size_of::<Elf64_Phdr>()].copy_from_slice(segment.as_slice());
                return;
            }
        }
    }

    #[test]
    fn loads_the_embedded_image() {
        let memory =
            GuestMemory::new(&MemoryConfig { user_size: 2 << 20, user_backing: UserBacking::Anonymous }).unwrap();
        let loaded = load(&memory, SENTRY).unwrap();
        assert_eq!(loaded.base, IMAGE_BASE);
        assert!(loaded.size > 0 && (loaded.base..loaded.base + loaded.size).contains(&loaded.entry));
        let mut code = [0; 4];
        memory.read(loaded.entry, &mut code).unwrap();
        assert_ne!(code, [0; 4]);
        assert_eq!(SENTRY.as_ptr() as usize % PAGE_SIZE as usize, 0);
        assert_eq!(SENTRY_SHA256.len(), 64);
    }

    #[test]
    fn refuses_other_files() {
        assert!(check(b"").is_err());
        assert!(check(&SENTRY[..40]).is_err());
        assert!(error(|header, _| header.e_ident[0] = 0).contains("not an ELF"));
        assert!(error(|header, _| header.e_ident[EI_CLASS] = 1).contains("64-bit"));
        assert!(error(|header, _| header.e_type = 2).contains("position-independent"));
        assert!(error(|header, _| header.e_machine = 3).contains("x86-64"));
        assert!(error(|header, _| header.e_entry = u64::MAX).contains("entry point"));
        assert!(error(|header, _| header.e_phoff = u64::MAX - 8).contains("program header 0"));
    }

    #[test]
    fn refuses_segments_outside_file_or_memory() {
        let segment_error = |edit: fn(&mut Elf64_Phdr)| error(|header, image| edit_segment(header, image, edit));
        assert!(segment_error(|segment| segment.p_offset = u64::MAX).contains("outside the file"));
        assert!(segment_error(|segment| segment.p_filesz = segment.p_memsz + 1).contains("outside the file"));
        assert!(segment_error(|segment| segment.p_memsz = KERNEL_SIZE).contains("outside kernel memory"));
        assert!(segment_error(|segment| segment.p_memsz = u64::MAX).contains("outside kernel memory"));
        assert!(segment_error(|segment| segment.p_type = PT_INTERP).contains("interpreter"));
    }
}
