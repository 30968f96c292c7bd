//! Conventions: other ways to write the same numbers. They are recognised and said, and are no error.
//!
//! | table | a line is about |
//! |---|---|
//! | [`name`] | a tensor that goes by another name, or holds several stages |
//! | [`place`] | the same numbers in other places of the tensor |
//! | [`value`] | numbers that are others on the way, and right again where the layer goes on |
//! | [`fused`] | numbers that go on as they were before they were rounded |
//!
//! Each is data: a line says which stages it is about, what is done to read it, and what a report says. How a thing is
//! done that a line names is the judge's business; it takes a convention for granted only where numbers are right by it.

pub mod fused;
pub mod name;
pub mod place;
pub mod value;
