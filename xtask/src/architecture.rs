//! The table of crates in `ARCHITECTURE.md`, which is written from the crates' manifests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::workspace::Crate;

const BEGIN: &str = "<!-- crates: written by `cargo xtask write` -->\n";
const END: &str = "<!-- end of crates -->\n";

/// Brings the table up to date, or says that it is not.
///
/// # Errors
/// The page has no place for it, or the table in it is stale and was not to be written.
pub fn table(root: &Path, crates: &[Crate], write: bool) -> Result<(), String> {
    let path = root.join("ARCHITECTURE.md");
    let page = fs::read_to_string(&path).map_err(|why| format!("{}: {why}", path.display()))?;
    let place = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
    let Some((before, (found, after))) = place else {
        return Err(format!("{} has no place for the crates", path.display()));
    };
    let wanted = rows(crates);
    if found == wanted {
        return Ok(());
    }
    if !write {
        return Err(
            "the crates in ARCHITECTURE.md are not those of the manifests: `cargo xtask write`".to_owned()
        );
    }
    let page = [before, BEGIN, &wanted, END, after].concat();
    fs::write(&path, page).map_err(|why| format!("{}: {why}", path.display()))
}

fn rows(crates: &[Crate]) -> String {
    let of = |name: &String| crates.iter().find(|one| one.name == *name).expect("a crate of this workspace");
    let row = |one: &Crate| {
        // Not those that another of them is built from.
        let below: BTreeSet<&String> =
            one.needs.iter().flat_map(|name| all_needs(of(name), crates)).collect();
        let needs: Vec<&str> =
            one.needs.iter().filter(|name| !below.contains(name)).map(String::as_str).collect();
        let (directory, description) = (one.directory.display(), &one.description);
        format!("| `{}` | `{directory}` | {description} | {} |\n", one.name, needs.join(", "))
    };
    let rows: String = crates.iter().map(row).collect();
    format!("| crate | directory | purpose | built from |\n| --- | --- | --- | --- |\n{rows}")
}

/// Everything that a crate is built from, directly or not.
fn all_needs<'a>(one: &'a Crate, crates: &'a [Crate]) -> BTreeSet<&'a String> {
    let direct = crates.iter().filter(|other| one.needs.contains(&other.name));
    direct.flat_map(|other| all_needs(other, crates)).chain(&one.needs).collect()
}

/// Whether every path that `ARCHITECTURE.md` names is there.
///
/// # Errors
/// One is not.
pub fn paths(root: &Path) -> Result<(), String> {
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).map_err(|why| why.to_string())?;
    let quoted = page.split('`').skip(1).step_by(2);
    let gone: Vec<&str> = quoted
        .filter(|word| word.contains('/') && !word.contains(' ') && !root.join(word).exists())
        .collect();
    if gone.is_empty() {
        Ok(())
    } else {
        Err(format!("ARCHITECTURE.md names what is not there: {}", gone.join(", ")))
    }
}
