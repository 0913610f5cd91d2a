//! Errors told whole: with all that caused them.

use std::error::Error;

/// An error and all that caused it, in one line.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("opening the door")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn causes_follow_in_order() {
        assert!(with_causes(&Outer(std::fmt::Error)).starts_with("opening the door: an error"));
    }
}
