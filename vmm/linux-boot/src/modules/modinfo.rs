//! A module's own words on what it needs: `depends=` in its section `.modinfo`.

use elf::ElfBytes;
use elf::endian::LittleEndian;

use super::normal;

/// The modules that an ELF object names in its `depends=`; none where it has no such line.
///
/// # Errors
/// What is wrong with the file, to complete "FILE is …".
pub(super) fn depends(image: &[u8]) -> Result<Vec<String>, String> {
    let damaged = |error: elf::ParseError| format!("damaged: {error}");
    let file = ElfBytes::<LittleEndian>::minimal_parse(image).map_err(damaged)?;
    let section = file.section_header_by_name(".modinfo").map_err(damaged)?;
    let Some(section) = section else {
        return Err("no kernel module (no section .modinfo)".to_owned());
    };
    let (info, compression) = file.section_data(&section).map_err(damaged)?;
    if compression.is_some() {
        return Err("damaged: its section .modinfo is compressed, which the kernel could not read".to_owned());
    }
    let line = info.split(|&byte| byte == 0).find_map(|line| line.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(line.unwrap_or_default());
    Ok(names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(normal).collect())
}
