//! Rust source as tokens: enough to find imports, definitions and the length of functions, without a compiler.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};

/// The tokens of a file of this workspace. Comments are none; documentation is.
pub fn read(path: &Path) -> Vec<TokenTree> {
    let text = fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let tokens = TokenStream::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    tokens.into_iter().collect()
}

/// The word that a token is, if it is one.
pub fn word(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

/// Whether a token is this character.
pub fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether `::` stands at `at`.
pub fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(first))
        if first.as_char() == ':' && first.spacing() == Spacing::Joint)
        && is_punct(tokens.get(at + 1), ':')
}

/// The group at `at`, if it has this delimiter.
pub fn group(tokens: &[TokenTree], at: usize, delimiter: Delimiter) -> Option<&Group> {
    match tokens.get(at) {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

/// The tokens inside a group.
pub fn inside(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// The tokens without the items that only `#[cfg(test)]` compiles.
pub fn without_tests(tokens: &[TokenTree]) -> Vec<TokenTree> {
    let (mut kept, mut at) = (Vec::new(), 0);
    while let Some(token) = tokens.get(at) {
        if attribute(tokens, at).is_some_and(|(words, _)| is_for_tests(&words)) {
            at = end_of_item(tokens, at);
            continue;
        }
        kept.push(match token {
            TokenTree::Group(group) => {
                let stream = without_tests(&inside(group)).into_iter().collect();
                let mut smaller = Group::new(group.delimiter(), stream);
                smaller.set_span(group.span());
                smaller.into()
            }
            token => token.clone(),
        });
        at += 1;
    }
    kept
}

/// The attribute at `at`, without white space, and the first token after it.
fn attribute(tokens: &[TokenTree], at: usize) -> Option<(String, usize)> {
    let start = at + 1 + usize::from(is_punct(tokens.get(at + 1), '!'));
    let words = group(tokens, start, Delimiter::Bracket).filter(|_| is_punct(tokens.get(at), '#'))?;
    Some((words.stream().to_string().split_whitespace().collect(), start + 1))
}

fn is_for_tests(attribute: &str) -> bool {
    attribute == "cfg(test)" || attribute.starts_with("cfg(all(test,")
}

/// The first token after the item, field or statement whose attributes begin at `at`.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while let Some((_, next)) = attribute(tokens, at) {
        at = next;
    }
    let is_use = tokens[at..].iter().take(3).any(|token| word(Some(token)).as_deref() == Some("use"));
    let is_field = is_punct(tokens.get(at + 1), ':') && !is_path_separator(tokens, at + 1);
    while let Some(token) = tokens.get(at) {
        at += 1;
        let is_body = matches!(token, TokenTree::Group(body) if body.delimiter() == Delimiter::Brace);
        if is_punct(Some(token), ';') || (is_body && !is_use) || (is_field && is_punct(Some(token), ',')) {
            break;
        }
    }
    at
}

/// A function and the lines it stands on, from `fn` to its closing brace.
pub struct Function {
    pub name: String,
    pub lines: RangeInclusive<usize>,
}

/// Every function with a body, nested ones too.
pub fn functions(tokens: &[TokenTree], found: &mut Vec<Function>) {
    for (at, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            functions(&inside(group), found);
        }
        let name = match (word(Some(token)).as_deref(), word(tokens.get(at + 1))) {
            (Some("fn"), Some(name)) => name,
            _ => continue,
        };
        let body = tokens[at..].iter().find(|token| {
            is_punct(Some(token), ';')
                || matches!(token, TokenTree::Group(body) if body.delimiter() == Delimiter::Brace)
        });
        if let Some(TokenTree::Group(body)) = body {
            found.push(Function { name, lines: token.span().start().line..=body.span().end().line });
        }
    }
}

/// The lines that hold a token which is no documentation.
pub fn lines_of_code(tokens: &[TokenTree], lines: &mut BTreeSet<usize>) {
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if let Some((_, next)) = attribute(tokens, at).filter(|(words, _)| words.starts_with("doc")) {
            at = next;
            continue;
        }
        let (first, last) = (token.span().start().line, token.span().end().line);
        match token {
            TokenTree::Group(group) => {
                lines.extend([first, last]);
                lines_of_code(&inside(group), lines);
            }
            _ => lines.extend(first..=last),
        }
        at += 1;
    }
}
