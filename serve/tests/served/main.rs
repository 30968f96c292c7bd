//! The server as clients see it: real sockets, the model in the program.

mod answers;
mod client;
mod company;
mod connections;
mod folder;
mod large;
mod program;
mod refusals;
