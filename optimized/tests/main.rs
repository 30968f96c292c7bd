//! The behaviour of the model on the device, part by part, in one program.

mod example;
mod generate;
mod graphs;
mod hostile;
mod library;
mod model;
mod plan;
mod properties;
mod support {
    pub mod forward;
    pub mod graphs;
    pub mod mutants;
}
