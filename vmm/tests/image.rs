//! Properties of the embedded sentry image that nothing else would notice.

use elf::{ElfBytes, abi, endian::LittleEndian};
use iced_x86::{Decoder, DecoderOptions, EncodingKind, Mnemonic};

fn image() -> ElfBytes<'static, LittleEndian> {
    ElfBytes::minimal_parse(vmm::image::SENTRY).expect("the image is an ELF file")
}

/// The sentry saves XMM registers only at entry and leaves the upper halves of vector registers to the application, which
/// holds as long as it has no VEX or EVEX code (legacy SSE does not touch them). XSAVE and XRSTOR have legacy encodings.
#[test]
fn has_no_vector_extension_code() {
    let elf = image();
    let (headers, names) = elf.section_headers_with_strtab().expect("section headers parse");
    let (headers, names) = (headers.expect("it has sections"), names.expect("and their names"));
    let mut instructions = 0;
    for header in headers.iter().filter(|h| h.sh_flags & u64::from(abi::SHF_EXECINSTR) != 0) {
        let (code, _) = elf.section_data(&header).expect("section data");
        for instruction in Decoder::with_ip(64, code, header.sh_addr, DecoderOptions::NONE) {
            // Padding between functions may decode as anything.
            if instruction.mnemonic() == Mnemonic::INVALID {
                continue;
            }
            instructions += 1;
            assert!(
                matches!(instruction.code().encoding(), EncodingKind::Legacy),
                "{} has {:?} at {:#x}",
                names.get(header.sh_name as usize).unwrap_or("?"),
                instruction.code(),
                instruction.ip()
            );
        }
    }
    assert!(instructions > 10_000, "only {instructions} instructions were looked at");
}

/// The image relocates itself and knows only one kind of relocation.
#[test]
fn has_only_relative_relocations() {
    let elf = image();
    let headers = elf.section_headers().expect("it has sections");
    for header in headers.iter().filter(|h| h.sh_type == abi::SHT_RELA) {
        for rela in elf.section_data_as_relas(&header).expect("relocations parse") {
            assert_eq!(rela.r_type, abi::R_X86_64_RELATIVE, "at {:#x}", rela.r_offset);
        }
    }
    assert!(elf.dynamic().expect("dynamic section").is_some_and(|d| d.iter().all(|e| e.d_tag != abi::DT_NEEDED)));
}
