//! The model over several ranks, on emulated devices of one process: the numbers of one device, whatever the order in which the
//! ranks get ahead; and every wrong call found.

mod bench;
mod collectives;
mod faults;
mod model;
mod mutants;
mod plan;
