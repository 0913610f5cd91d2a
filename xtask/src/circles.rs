//! Circles of modules: files of a crate that import each other in a loop. Tests are left out.
//!
//! An import is a `use` of this crate, or a path that begins with `crate::`, `super::` or `self::`. A name counts for the
//! file that defines it, whichever module passes it on by `pub use`. Two graphs are searched: the modules, and the
//! folders at the root of the crate, each with everything below it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proc_macro2::{Delimiter, TokenTree};

use crate::source::{group, inside, is_path_separator, is_punct, read, without_tests, word};

/// A module by its path from the root of the crate.
type Module = Vec<String>;
/// For each node the nodes that it imports from, with the names it imports.
type Arrows = BTreeMap<Module, BTreeMap<Module, BTreeSet<String>>>;

/// A path of a `use`, and the name under which it is known.
#[derive(Clone, PartialEq, Eq)]
struct Leaf {
    path: Vec<String>,
    name: String,
}

#[derive(Default)]
struct Contents {
    defined: BTreeSet<String>,
    children: BTreeSet<String>,
    passed_on: Vec<Leaf>,
    used: Vec<Leaf>,
}

/// The circles of a crate, as text; empty if there is none.
pub fn of_crate(root: &Path) -> Vec<String> {
    let mut modules = BTreeMap::new();
    load(root, Vec::new(), &mut modules);
    let arrows = arrows(&modules);
    let found = circles(&arrows);
    if found.is_empty() { circles(&of_folders(&arrows)) } else { found }
}

fn load(file: &Path, module: Module, modules: &mut BTreeMap<Module, Contents>) {
    let tokens = without_tests(&read(file));
    let mut contents = Contents::default();
    top_level(&tokens, &mut contents);
    imports(&tokens, &mut contents);
    let stands_for_folder =
        file.file_name().is_some_and(|name| ["lib.rs", "main.rs", "mod.rs"].iter().any(|&it| name == it));
    let folder = if stands_for_folder { file.with_file_name("") } else { file.with_extension("") };
    for child in &contents.children {
        let found = [folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs")];
        if let Some(path) = found.iter().find(|path| path.exists()) {
            load(path, [&module[..], std::slice::from_ref(child)].concat(), modules);
        }
    }
    modules.insert(module, contents);
}

/// What a file defines at its top, and the modules it declares.
fn top_level(tokens: &[TokenTree], contents: &mut Contents) {
    const KINDS: [&str; 8] = ["struct", "enum", "union", "trait", "type", "fn", "const", "static"];
    for (at, token) in tokens.iter().enumerate() {
        let (Some(first), second) = (word(Some(token)), word(tokens.get(at + 1))) else { continue };
        match second {
            Some(name) if first == "mod" && is_punct(tokens.get(at + 2), ';') => {
                contents.children.insert(name);
            }
            Some(name) if KINDS.contains(&first.as_str()) => {
                contents.defined.insert(name);
            }
            // A macro that defines: every name in it that something in brackets follows.
            None if is_punct(tokens.get(at + 1), '!') => {
                contents.defined.extend(word(tokens.get(at + 2)).filter(|_| first == "macro_rules"));
                let body = group(tokens, at + 2, Delimiter::Brace).map(inside).unwrap_or_default();
                let names = body.windows(2).filter(|pair| matches!(pair[1], TokenTree::Group(_)));
                contents.defined.extend(names.filter_map(|pair| word(pair.first())));
            }
            _ => {}
        }
    }
}

/// Everything that a file imports, wherever in it.
fn imports(tokens: &[TokenTree], contents: &mut Contents) {
    let mut at = 0;
    while at < tokens.len() {
        if let TokenTree::Group(group) = &tokens[at] {
            imports(&inside(group), contents);
        }
        let first = word(tokens.get(at)).unwrap_or_default();
        if first == "use" && !is_punct(tokens.get(at + 1), '<') {
            let end = (at..tokens.len()).find(|&end| is_punct(tokens.get(end), ';')).unwrap_or(tokens.len());
            let leaves = leaves(&tokens[at + 1..end], &[]);
            // `pub use`, `pub(crate) use`.
            let before = match &tokens[..at] {
                [.., before, TokenTree::Group(_)] | [.., before] => word(Some(before)),
                [] => None,
            };
            match before.as_deref() {
                Some("pub") => contents.passed_on.extend(leaves),
                _ => contents.used.extend(leaves),
            }
            at = end;
        } else if ["crate", "super", "self"].contains(&first.as_str()) && is_path_separator(tokens, at + 1) {
            let mut path = vec![first];
            while is_path_separator(tokens, at + 1) {
                let Some(next) = word(tokens.get(at + 3)) else { break };
                path.push(next);
                at += 3;
            }
            contents.used.push(Leaf { name: String::new(), path });
        }
        at += 1;
    }
}

/// The leaves of `a::{b, c::{d, e as f}}`.
fn leaves(tokens: &[TokenTree], head: &[String]) -> Vec<Leaf> {
    let parts = tokens.split(|token| is_punct(Some(token), ','));
    parts.filter(|part| !part.is_empty()).flat_map(|part| leaves_of_part(part, head)).collect()
}

fn leaves_of_part(tokens: &[TokenTree], head: &[String]) -> Vec<Leaf> {
    let (mut path, mut name) = (head.to_vec(), None);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => return leaves(&inside(group), &path),
            TokenTree::Punct(punct) if punct.as_char() == '*' => path.push("*".to_owned()),
            TokenTree::Ident(ident) if ident == "as" => {
                name = word(tokens.get(at + 1));
                break;
            }
            TokenTree::Ident(ident) if ident == "self" && !path.is_empty() => {}
            TokenTree::Ident(ident) => path.push(ident.to_string()),
            _ => {}
        }
    }
    let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
    vec![Leaf { path, name }]
}

fn arrows(modules: &BTreeMap<Module, Contents>) -> Arrows {
    let mut arrows = Arrows::new();
    for (module, contents) in modules {
        for leaf in &contents.used {
            let Some(target) = absolute(&leaf.path, module, modules) else { continue };
            let target: Vec<String> = target.into_iter().filter(|word| word != "*").collect();
            let owner = owner(&target, modules, &mut BTreeSet::new());
            if owner != *module {
                let names = arrows.entry(module.clone()).or_default().entry(owner).or_default();
                names.extend(leaf.path.last().cloned());
            }
        }
    }
    arrows
}

/// A path from inside a module as one from the root of the crate; `None` if it leaves the crate.
fn absolute(path: &[String], module: &[String], modules: &BTreeMap<Module, Contents>) -> Option<Vec<String>> {
    let first = path.first()?;
    if first == "crate" {
        return Some(path[1..].to_vec());
    }
    let steps = path.iter().take_while(|word| ["super", "self"].contains(&word.as_str())).count();
    let (steps, rest) = path.split_at(steps);
    if steps.is_empty() && !modules[module].children.contains(first) {
        return None;
    }
    let up = steps.iter().filter(|word| *word == "super").count();
    let base = module.len().checked_sub(up)?;
    Some([&module[..base], rest].concat())
}

/// The module that defines what an absolute path names.
fn owner(
    path: &[String],
    modules: &BTreeMap<Module, Contents>,
    seen: &mut BTreeSet<(Module, String)>,
) -> Module {
    let mut module = Module::new();
    for (at, word) in path.iter().enumerate() {
        let contents = &modules[&module];
        let below = [&module[..], std::slice::from_ref(word)].concat();
        if contents.children.contains(word) && modules.contains_key(&below) {
            module = below;
            continue;
        }
        if contents.defined.contains(word) || !seen.insert((module.clone(), word.clone())) {
            return module;
        }
        for leaf in &contents.passed_on {
            let Some(target) = absolute(&leaf.path, &module, modules) else { continue };
            if leaf.name == *word {
                return owner(&[&target, &path[at + 1..]].concat(), modules, seen);
            }
            if leaf.name == "*" {
                let target = [&target[..target.len() - 1], &path[at..]].concat();
                let found = owner(&target, modules, seen);
                if modules[&found].defined.contains(word) {
                    return found;
                }
            }
        }
        return module;
    }
    module
}

/// The arrows between the folders at the root of the crate.
fn of_folders(arrows: &Arrows) -> Arrows {
    let folder =
        |module: &Module| vec![module.first().map_or("the root".to_owned(), |name| format!("{name}/"))];
    let mut folders = Arrows::new();
    for (module, targets) in arrows {
        for (target, names) in targets.iter().filter(|(target, _)| target.first() != module.first()) {
            let known = folders.entry(folder(module)).or_default().entry(folder(target)).or_default();
            known.extend(names.iter().cloned());
        }
    }
    folders
}

/// The strongly connected components of more than one node: sets of nodes each of which reaches the others.
fn circles(arrows: &Arrows) -> Vec<String> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        arrows.keys().map(|module| (module, reachable(module, arrows))).collect();
    let circles: BTreeSet<BTreeSet<&Module>> = reached
        .iter()
        .map(|(module, targets)| {
            let reaches_back =
                |target: &&&Module| reached.get(*target).is_some_and(|back| back.contains(module));
            targets.iter().filter(reaches_back).copied().collect()
        })
        .collect();
    circles.iter().filter(|circle| circle.len() > 1).map(|circle| describe(circle, arrows)).collect()
}

fn reachable<'a>(from: &'a Module, arrows: &'a Arrows) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for target in arrows.get(module).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(target) {
                open.push(target);
            }
        }
    }
    reached
}

fn describe(circle: &BTreeSet<&Module>, arrows: &Arrows) -> String {
    let name = |module: &Module| if module.is_empty() { "the root".to_owned() } else { module.join("::") };
    let mut text = format!("a circle of {} modules", circle.len());
    for module in circle {
        for (target, names) in arrows[*module].iter().filter(|(target, _)| circle.contains(target)) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            text += &format!("\n  {} -> {}: {}", name(module), name(target), names.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_a_crate(files: &[(&str, &str)]) -> Vec<String> {
        let place = std::env::temp_dir().join(format!("xtask-{}-{}", std::process::id(), files.len()));
        for (path, text) in files {
            let path = place.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let found = of_crate(&place.join("lib.rs"));
        std::fs::remove_dir_all(place).unwrap();
        found
    }

    #[test]
    fn a_name_counts_for_the_file_that_defines_it() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::{A, helper as aid};"),
            ("a.rs", "use crate::b::B; pub struct A(B); pub fn helper() {}"),
            ("b.rs", "pub struct B; fn f() { let _ = |_: crate::aid| (); }"),
        ];
        let [circle] = &in_a_crate(&files)[..] else { panic!("one circle") };
        assert!(circle.contains("a -> b: B") && circle.contains("b -> a: aid"), "{circle}");
    }

    #[test]
    fn tests_and_the_way_down_make_no_circle() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c;"),
            (
                "a.rs",
                "pub struct A; #[cfg(test)] use crate::b::{B, f}; #[cfg(test)] mod t { use crate::b::B; }",
            ),
            ("b.rs", "use super::a::A; pub struct B(A);"),
            ("c/mod.rs", "mod d; pub(crate) const C: u32 = d::D;"),
            ("c/d.rs", "pub const D: u32 = 1;"),
        ];
        assert_eq!(in_a_crate(&files), [""; 0]);
    }
}
