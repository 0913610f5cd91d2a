//! The test guest kernel as an embedded ELF, and the built-in scenarios.
