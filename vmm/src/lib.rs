//! zapscope's library.
