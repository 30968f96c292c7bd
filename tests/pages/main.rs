//! What is written down is true: the pages that people read, and the records beside the golden cases.

mod golden_files;
mod readme;
