//! Where a value stands in a scenario's text.

use toml::Spanned;

/// A value, and where it stands in the text.
pub(super) type At<T> = Spanned<T>;
