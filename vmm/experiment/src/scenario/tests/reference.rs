//! The reference of the scenario language in the book, written from the types: keys, their kinds and their documentation
//! from the structs that serde reads, words from the errors that name them. `cargo xtask write` writes it.

use std::fmt::Write;

use super::Scenario;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/reference.md");

const SOURCES: [&str; 3] =
    [include_str!("../syntax.rs"), include_str!("../linux.rs"), include_str!("../uffd.rs")];

/// The tables of the language: a heading, the struct, and what stands before a key of it.
const TABLES: [(&str, &str, &str); 6] = [
    ("At the top", "ScenarioText", ""),
    ("`[linux]`", "LinuxText", "[linux]\n"),
    ("`[uffd]`", "UffdText", "[uffd]\n"),
    ("`[matrix]`", "AxesText", "[matrix]\n"),
    ("`[[case]]`", "CaseText", "[[case]]\n"),
    ("`[[case.step]]`", "StepText", "[[case]]\n[[case.step]]\n"),
];

const INTRODUCTION: &str = "# The scenario language

<!-- written by `cargo xtask write` from vmm/experiment/src/scenario -->

Every key of a scenario. [Writing a scenario](scenarios.md) has an example. A size is a number of bytes with a binary unit
(`4k`, `64MiB`); a time is a number with a unit (`50us`, `100ms`, `2s`); a range is `START..END` of two sizes, without its
end. Keys without a default are required where the table says so.
";

/// A key as its struct declares it.
struct Key {
    name: String,
    about: String,
    kind: String,
}

/// The keys of a struct, by its source.
fn keys_of(name: &str) -> Vec<Key> {
    let head = format!("struct {name} {{\n");
    let body = SOURCES.iter().find_map(|source| source.split_once(&head)?.1.split("\n}").next());
    let (mut keys, mut about, mut renamed) = (Vec::new(), String::new(), None);
    for line in body.unwrap_or_else(|| panic!("no {name}")).lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            about += &format!("{}{text}", if about.is_empty() { "" } else { " " });
        } else if let Some(rest) = line.strip_prefix("#[serde(rename = \"") {
            renamed = rest.split('"').next().map(str::to_owned);
        } else if let Some((field, kind)) = line.trim_end_matches(',').split_once(": ") {
            let name = renamed.take().unwrap_or_else(|| field.trim_start_matches("pub ").to_owned());
            keys.push(Key { name, about: std::mem::take(&mut about), kind: kind.to_owned() });
        }
    }
    keys
}

/// What is said of a text that no scenario begins with.
fn refusal(before: &str, line: &str) -> String {
    let text = format!("name = \"x\"\nmemory = \"2MiB\"\n{before}{line}\n");
    // The top's own keys stand there already.
    let text = if before.is_empty() && (line.starts_with("name") || line.starts_with("memory")) {
        format!("{line}\n")
    } else {
        text
    };
    Scenario::parse(&text, "it").expect_err(line).to_string()
}

/// What may stand for a key, in words.
fn values(before: &str, key: &Key) -> String {
    let kinds = [
        ("Vec<At<ExcludeText>>", "tables"),
        ("Vec<CaseText>", "tables"),
        ("Vec<StepText>", "tables"),
        ("Text>", "a table"),
        ("AxesText", "a table"),
        ("<Size>", "a size"),
        ("<Granule>", "a size"),
        ("TimeSpan", "a time"),
        ("ByteRange", "a range"),
        ("bool", "`true`, `false`"),
        ("Vec<At<u64>>", "numbers"),
        ("u64", "a number"),
        ("u32", "a number"),
        ("f64", "a number"),
        ("Vec<At<String>>", "texts"),
        ("String", "a text"),
        ("PathBuf", "a path"),
    ];
    let axis = if key.kind.starts_with("AxisText") { "each " } else { "" };
    if let Some((_, words)) = kinds.iter().find(|(kind, _)| key.kind.contains(kind)) {
        return format!("{axis}{words}");
    }
    let value = if axis.is_empty() { "\"?\"" } else { "[\"?\"]" };
    let said = refusal(before, &format!("{} = {value}", key.name));
    let (_, known) = said.rsplit_once(": ").unwrap_or_else(|| panic!("no words in {said:?}"));
    match known.strip_prefix("choose one of ") {
        Some(words) => format!("{axis}`{}`", words.replace(", ", "`, `")),
        None => format!("{axis}{}", known.strip_prefix("use ").unwrap_or(known)),
    }
}

fn reference() -> String {
    let mut page = INTRODUCTION.to_owned();
    for (heading, name, before) in TABLES {
        let keys = keys_of(name);
        let said = refusal(before, "zz = 1");
        let known: Vec<&str> = said.split("expected one of ").nth(1).unwrap_or(&said).split('`').collect();
        let known: Vec<&str> = known.into_iter().skip(1).step_by(2).collect();
        let names: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(names, known, "{said}");
        let _ = write!(page, "\n## {heading}\n\n| key | value | |\n| --- | --- | --- |\n");
        for key in &keys {
            assert!(!key.about.is_empty(), "{name}::{} has no documentation", key.name);
            let required = if key.kind.starts_with("At<") { " Required." } else { "" };
            let (name, values, about) = (&key.name, values(before, key), &key.about);
            let _ = writeln!(page, "| `{name}` | {values} | {about}{required} |");
        }
    }
    page
}

#[test]
fn the_reference_in_the_book_is_that_of_the_types() {
    let page = reference();
    if std::env::var_os("ZAPSCOPE_WRITE_REFERENCE").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let kept = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(kept == page, "docs/src/reference.md is stale: `cargo xtask write`; it should be:\n{page}");
}
