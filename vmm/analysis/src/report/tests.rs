//! Tests over the report as a whole: table, words, KTAP lines.

mod announced;
mod arbitrary;
mod foreign;
