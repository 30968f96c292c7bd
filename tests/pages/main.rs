//! What is written down is true: the pages that people read, and the records beside the golden cases.

mod examples;
mod golden_files;
mod model_page;
mod readme;
