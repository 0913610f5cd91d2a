//! The examples of README and book: what they show to be typed can be typed, what they show to be written can be read.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};

use super::args::Arguments;
use analysis::report::fixture;
use experiment::record::Row;
use experiment::scenario::Scenario;

/// The README and the book's chapters in the order of its summary, each with its path.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read =
        |path: &Path| fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let summary = read(&root.join("docs/src/SUMMARY.md"));
    let chapters = links(&summary).into_iter().map(|link| root.join("docs/src").join(link));
    let pages = [root.join("README.md")].into_iter().chain(chapters);
    pages.map(|path| (path.clone(), read(&path))).collect()
}

/// Where the links of a page lead, those to the web left out.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    targets.filter(|target| !target.starts_with("http")).collect()
}

/// The contents of the pages' blocks of one language, in order.
fn blocks(language: &str) -> Vec<String> {
    let (mut blocks, mut open): (Vec<String>, Option<String>) = (Vec::new(), None);
    for line in pages().iter().flat_map(|(_, page)| page.lines()) {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.extend([line, "\n"]),
            (None, Some(found)) if found == language => open = Some(String::new()),
            // Of another language: nothing of it is looked at.
            (None, Some(_)) | (None, None) => {}
        }
    }
    blocks.into_iter().filter(|block| !block.is_empty()).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for (path, page) in pages() {
        for link in links(&page) {
            let target = path.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{}: {link}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} links");
}

#[test]
fn every_page_is_in_the_summary() {
    let known: Vec<PathBuf> = pages().into_iter().map(|(path, _)| path).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src");
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        assert!(path.ends_with("SUMMARY.md") || known.contains(&path), "{}", path.display());
    }
}

/// What stands on a line of a shell, without the comment and with every substitution done.
fn typed(line: &str) -> Vec<String> {
    let line = line.split(" #").next().unwrap_or_default();
    let (mut text, mut rest) = (String::new(), line);
    while let Some((before, after)) = rest.split_once("$(") {
        text.extend([before, "1"]);
        rest = after.split_once(')').expect("what is opened is closed").1;
    }
    text.push_str(rest);
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn every_command_can_be_typed() {
    let mut seen = 0;
    for line in blocks("sh").iter().flat_map(|block| block.lines()) {
        let words = typed(&line.replace("cargo run --release -- ", "zapscope "));
        if words.first().is_some_and(|word| word == "zapscope") {
            seen += 1;
            Arguments::try_parse_from(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
    assert!(seen >= 7, "{seen} commands");
}

/// The list under "Commands": every command of the program stands there, and every option it has there is one.
#[test]
fn the_list_of_commands_is_true() {
    let block = blocks("text").into_iter().find(|block| block.starts_with("zapscope run")).unwrap();
    let program = Arguments::command();
    let (mut current, mut told) = (None, Vec::new());
    for line in block.lines() {
        if let Some(rest) = line.strip_prefix("zapscope ") {
            let name = rest.split_whitespace().next().unwrap();
            let command = program.get_subcommands().find(|command| command.get_name() == name);
            current = Some(command.unwrap_or_else(|| panic!("no command `{name}`")));
            told.push(name.to_owned());
        }
        let command = current.expect("it begins with a command");
        for word in line.split_whitespace().filter_map(|word| word.strip_prefix("--")) {
            let option =
                word.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').next().unwrap();
            assert!(
                command.get_arguments().any(|argument| argument.get_long() == Some(option)),
                "`{}` has no --{option}",
                command.get_name()
            );
        }
    }
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        assert!(told.iter().any(|name| name == command.get_name()), "`{}` is missing", command.get_name());
    }
}

/// The example of a scenario is one; the example of expectations can be written into it, and that of our own swap.
#[test]
fn every_scenario_can_be_written() {
    let toml = blocks("toml");
    let [scenario, expect, uffd] = toml.as_slice() else { panic!("three examples: {}", toml.len()) };
    let parsed = Scenario::parse(scenario, "the book").unwrap();
    assert!(parsed.rows().count() > 1);
    let case = "[[case]]\nname = \"sparse\"\n";
    assert_eq!((scenario.matches(case).count(), expect.matches(case).count()), (1, 1), "{expect}");
    let expecting = Scenario::parse(&scenario.replace(case, expect), "the book")
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(expecting.cases[0].expect.len() >= 3);
    let ours = scenario.replace("reclaim = [\"pageout\"]", "reclaim = [\"pageout\", \"uffd\"]");
    assert_ne!(&ours, scenario, "the example takes pages by pageout");
    let ours = ours.replacen("[matrix]", &format!("{uffd}\n[matrix]"), 1);
    Scenario::parse(&ours, "the book").unwrap_or_else(|error| panic!("{error}"));
}

/// Every key of a run or a row that the pages name in their tables and notes is one.
#[test]
fn every_key_is_one() {
    let run = serde_json::to_value(fixture::run(vec![fixture::row("4k", "kernel")])).unwrap();
    let is_key = |word: &str| Row::KEYS.iter().any(|(key, _)| *key == word) || run.get(word).is_some();
    // The reference has the keys of a scenario.
    let pages: Vec<_> = pages().into_iter().filter(|(path, _)| !path.ends_with("reference.md")).collect();
    let quoted = pages.iter().flat_map(|(_, page)| page.split('`').skip(1).step_by(2));
    let keys: Vec<&str> = quoted.filter(|word| is_like_a_key(word)).collect();
    assert!(keys.len() > 12, "{keys:?}");
    for key in keys {
        assert!(is_key(key), "`{key}` is no key of a run or a row");
    }
}

/// `kernel_ranges`: such a word that is no file, option or path.
fn is_like_a_key(word: &str) -> bool {
    let of_a_key = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    let known_otherwise = ["mmu_notifier", "kvm_pvm", "kvm_intel", "kvm_amd"];
    word.contains('_') && word.chars().all(of_a_key) && !known_otherwise.contains(&word)
}
