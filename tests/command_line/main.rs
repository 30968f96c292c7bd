//! The command line, as a process: what it prints, what it writes, how it ends, and what it refuses.

mod check;
mod check_text;
mod damage;
mod extremes;
mod files;
mod forms;
mod generate;
mod hostile;
mod materialize;
mod operator;
mod outputs;
mod plan;
mod process;
mod refused;
mod requests;
mod shapes;
mod trace;
mod verdicts;
mod verify;
