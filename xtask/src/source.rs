//! Rust source as tokens: enough to find imports, definitions and the length of functions, without a compiler.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};

/// The tokens of a file, without comments.
pub struct Source {
    pub tokens: Vec<TokenTree>,
}

impl Source {
    /// Reads a file of this workspace.
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        let tokens = TokenStream::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        Self { tokens: tokens.into_iter().collect() }
    }

    /// The same without the items that only `#[cfg(test)]` compiles.
    pub fn without_tests(self) -> Self {
        Self { tokens: without_tests(self.tokens) }
    }
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

fn without_tests(tokens: Vec<TokenTree>) -> Vec<TokenTree> {
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if is_for_tests(&tokens, at) {
            at = end_of_item(&tokens, at);
            continue;
        }
        kept.push(match &tokens[at] {
            TokenTree::Group(group) => {
                let mut smaller =
                    Group::new(group.delimiter(), without_tests(inside(group)).into_iter().collect());
                smaller.set_span(group.span());
                smaller.into()
            }
            token => token.clone(),
        });
        at += 1;
    }
    kept
}

/// Whether `#[cfg(test)]` or `#[cfg(all(test, …))]` stands at `at`.
fn is_for_tests(tokens: &[TokenTree], at: usize) -> bool {
    let Some(attribute) =
        is_punct(tokens.get(at), '#').then(|| group(tokens, at + 1, Delimiter::Bracket)).flatten()
    else {
        return false;
    };
    let words = inside(attribute);
    let Some(condition) = (word(words.first()).as_deref() == Some("cfg"))
        .then(|| group(&words, 1, Delimiter::Parenthesis))
        .flatten()
    else {
        return false;
    };
    let condition = inside(condition);
    match word(condition.first()).as_deref() {
        Some("test") => true,
        Some("all") => group(&condition, 1, Delimiter::Parenthesis)
            .is_some_and(|all| word(inside(all).first()).as_deref() == Some("test")),
        _ => false,
    }
}

/// The first token after the item, field or statement whose attributes begin at `at`.
fn end_of_item(tokens: &[TokenTree], mut at: usize) -> usize {
    while is_punct(tokens.get(at), '#') && group(tokens, at + 1, Delimiter::Bracket).is_some() {
        at += 2;
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
pub fn lines_of_code(tokens: &[TokenTree], lines: &mut std::collections::BTreeSet<usize>) {
    let mut at = 0;
    while at < tokens.len() {
        let documentation = is_punct(tokens.get(at), '#')
            .then(|| {
                let bang = usize::from(is_punct(tokens.get(at + 1), '!'));
                let attribute = group(tokens, at + 1 + bang, Delimiter::Bracket)?;
                (word(inside(attribute).first()).as_deref() == Some("doc")).then_some(at + 2 + bang)
            })
            .flatten();
        if let Some(next) = documentation {
            at = next;
            continue;
        }
        let span = tokens[at].span();
        match &tokens[at] {
            TokenTree::Group(group) => {
                lines.extend([span.start().line, span.end().line]);
                lines_of_code(&inside(group), lines);
            }
            _ => lines.extend(span.start().line..=span.end().line),
        }
        at += 1;
    }
}
