//! Names for addresses of the sentry in its panic reports.

use elf::{
    ElfBytes,
    abi::{SHF_EXECINSTR, STT_FUNC, STT_NOTYPE},
    endian::LittleEndian,
    symbol::Symbol,
};
use rustc_demangle::demangle;

/// Functions of the image by address.
pub struct Symbols {
    /// Start, end and mangled name, sorted.
    functions: Vec<(u64, u64, String)>,
    /// Virtual address at which the image's address 0 lies.
    base: u64,
    end: u64,
}

impl Symbols {
    /// `base` and `size`: where the image runs. An image without symbols gives a table without entries.
    pub fn new(image: &[u8], base: u64, size: u64) -> Symbols {
        let mut functions = Vec::new();
        if let Ok(elf) = ElfBytes::<LittleEndian>::minimal_parse(image)
            && let Ok(Some((symbols, names))) = elf.symbol_table()
        {
            for symbol in symbols.iter() {
                if let Some(end) = end_of_code(&elf, &symbol)
                    && let Ok(name) = names.get(symbol.st_name as usize)
                {
                    functions.push((symbol.st_value, end, name.to_owned()));
                }
            }
        }
        functions.sort();
        Symbols { functions, base, end: base.saturating_add(size) }
    }

    /// `function+0x12` for an address in the image.
    pub fn name(&self, address: u64) -> Option<String> {
        let offset = address.checked_sub(self.base)?;
        let index = self.functions.partition_point(|function| function.0 <= offset).checked_sub(1)?;
        let (start, end, name) = &self.functions[index];
        // A return address may lie just behind a function that does not return.
        (offset <= *end).then(|| format!("{:#}+{:#x}", demangle(name), offset - start))
    }

    /// The text with a name behind every hexadecimal address (`0x...`, or `image+0x...`) that lies in the image.
    pub fn annotate(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() * 2);
        let mut rest = text;
        while let Some(at) = rest.find("0x") {
            let digits = rest[at + 2..].bytes().take_while(u8::is_ascii_hexdigit).count();
            let end = at + 2 + digits;
            out.push_str(&rest[..end]);
            let base = if rest[..at].ends_with("image+") { self.base } else { 0 };
            if let Ok(number) = u64::from_str_radix(&rest[at + 2..end], 16)
                && let Some(address) = base.checked_add(number)
                && (self.base..self.end).contains(&address)
                && let Some(name) = self.name(address)
            {
                out.push_str(" <");
                out.push_str(&name);
                out.push('>');
            }
            rest = &rest[end..];
        }
        out.push_str(rest);
        out
    }
}

/// Where the code that a symbol names ends; none for other symbols. Labels of assembly have no size: up to the next symbol.
fn end_of_code(elf: &ElfBytes<'_, LittleEndian>, symbol: &Symbol) -> Option<u64> {
    const LABEL_SIZE: u64 = 4096;
    let size = match symbol.st_symtype() {
        STT_FUNC if symbol.st_size > 0 => symbol.st_size,
        STT_FUNC | STT_NOTYPE => LABEL_SIZE,
        _ => return None,
    };
    let section = elf.section_headers()?.get(symbol.st_shndx.into()).ok()?;
    (section.sh_flags & u64::from(SHF_EXECINSTR) != 0).then(|| symbol.st_value.saturating_add(size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::SENTRY;

    #[test]
    fn names_addresses_of_the_image() {
        let elf = ElfBytes::<LittleEndian>::minimal_parse(SENTRY).unwrap();
        let entry = elf.ehdr.e_entry;
        let symbols = Symbols::new(SENTRY, 0x4000_0000, 0x100_0000);
        assert_eq!(symbols.name(0x4000_0000 + entry).as_deref(), Some("_start+0x0"));
        let address = 0x4000_0000 + entry;
        let text = format!("at {address:#x}, 0x1 and 0xffffffffffffffffffff 0x");
        let expected = format!("at {address:#x} <_start+0x0>, 0x1 and 0xffffffffffffffffffff 0x");
        assert_eq!(symbols.annotate(&text), expected);
        assert_eq!(symbols.annotate(&format!("image+{entry:#x}")), format!("image+{entry:#x} <_start+0x0>"));
    }

    #[test]
    fn an_image_without_symbols_has_no_names() {
        let symbols = Symbols::new(b"", 0x1000, 0x1000);
        assert_eq!(symbols.annotate("at 0x1234"), "at 0x1234");
    }
}
