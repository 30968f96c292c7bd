//! From text to a tree: lexer, literals, types, declarations, statements.
//!
//! The parser knows the shape of PTX but no instruction: `frobnicate.u32 %r1, %r2;` parses, and `lower` says what is
//! wrong with it. Every statement keeps its line in the PTX text and, from the last `.loc`, its line in the source.

pub(crate) mod ast;
mod body;
mod lexer;
pub(crate) mod literal;
mod parser;
pub(crate) mod types;
mod variable;

pub(crate) use parser::parse;
