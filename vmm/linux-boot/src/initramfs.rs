//! The initramfs of a guest with an agent.
//!
//! ```text
//!   /init                   the agent
//!   /dev/console, /dev/null for as long as there is no devtmpfs
//!   /modules/NN-name.ko     modules, in the order in which they are to be loaded
//! ```

use super::cpio::{CpioError, Writer};
use super::modules::Module;

/// Appends an archive with the agent and `modules`, each after those that it depends on, to what `archive` has.
pub fn append_agent(archive: Vec<u8>, mut agent: &[u8], modules: &[Module]) -> Result<Vec<u8>, CpioError> {
    let mut writer = Writer::new(archive);
    writer.directory("dev", 0o755)?;
    writer.character_device("dev/console", 0o600, (5, 1))?;
    writer.character_device("dev/null", 0o600, (1, 3))?;
    writer.directory("modules", 0o755)?;
    writer.file("init", 0o755, agent.len() as u64, &mut agent)?;
    // As many digits as the last needs: the agent loads modules in the order of their names.
    let digits = modules.len().to_string().len();
    for (index, Module { name, image }) in modules.iter().enumerate() {
        let path = format!("modules/{index:0digits$}-{name}.ko");
        writer.file(&path, 0o644, image.len() as u64, &mut &image[..])?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::read;

    fn module(number: u8) -> Module {
        Module { name: format!("m{number}"), image: vec![number] }
    }

    #[test]
    fn modules_sort_in_the_order_they_were_given() {
        let modules: Vec<_> = (0..12).rev().map(module).collect();
        let mut found = read(&append_agent(Vec::new(), b"agent", &modules).unwrap());
        found.retain(|entry| entry.name.starts_with("modules/"));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let given: Vec<_> = modules.iter().map(|module| &module.image).collect();
        assert_eq!(found.iter().map(|entry| &entry.data).collect::<Vec<_>>(), given);
        assert_eq!(found[0].name, "modules/00-m11.ko");
    }

    #[test]
    fn every_entry_comes_after_its_directory() {
        let found = read(&append_agent(Vec::new(), b"agent", &[module(1)]).unwrap());
        for (index, entry) in found.iter().enumerate() {
            if let Some((parent, _)) = entry.name.rsplit_once('/') {
                let made = found[..index].iter().find(|before| before.name == parent);
                assert!(made.is_some_and(|made| made.mode == 0o040_755), "{}", entry.name);
            }
        }
        assert!(
            found
                .iter()
                .any(|entry| entry.name == "init" && entry.data == b"agent" && entry.mode == 0o100_755)
        );
    }
}
