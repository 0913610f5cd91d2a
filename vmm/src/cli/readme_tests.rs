//! The README's examples: what it shows to be typed can be typed, what it shows to be written can be read.

use clap::{CommandFactory, Parser};

use super::args::Arguments;
use crate::record::Row;
use crate::report::fixture;
use crate::scenario::Scenario;

const README: &str = include_str!("../../../README.md");

/// The contents of the README's blocks of one language, in order.
fn blocks(language: &str) -> Vec<String> {
    let (mut blocks, mut open): (Vec<String>, Option<String>) = (Vec::new(), None);
    for line in README.lines() {
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
    let parsed = Scenario::parse(scenario, "README.md").unwrap();
    assert!(parsed.rows().count() > 1);
    let case = "[[case]]\nname = \"sparse\"\n";
    assert_eq!((scenario.matches(case).count(), expect.matches(case).count()), (1, 1), "{expect}");
    let expecting = Scenario::parse(&scenario.replace(case, expect), "README.md")
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(expecting.cases[0].expect.len() >= 3);
    let ours = scenario.replace("reclaim = [\"pageout\"]", "reclaim = [\"pageout\", \"uffd\"]");
    assert_ne!(&ours, scenario, "the example takes pages by pageout");
    let ours = ours.replacen("[matrix]", &format!("{uffd}\n[matrix]"), 1);
    Scenario::parse(&ours, "README.md").unwrap_or_else(|error| panic!("{error}"));
}

/// Every key of a run or a row that the README names in its tables and notes is one.
#[test]
fn every_key_is_one() {
    let run = serde_json::to_value(fixture::run(vec![fixture::row("4k", "kernel")])).unwrap();
    let is_key = |word: &str| Row::KEYS.iter().any(|(key, _)| *key == word) || run.get(word).is_some();
    let keys: Vec<&str> = README.split('`').skip(1).step_by(2).filter(|word| is_like_a_key(word)).collect();
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
