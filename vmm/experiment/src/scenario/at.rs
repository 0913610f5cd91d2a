//! Values with their place in a scenario's text.

use toml::Spanned;

/// A value with its place in the text.
pub(super) type At<T> = Spanned<T>;
