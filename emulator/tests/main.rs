//! The behaviour of the emulator, part by part, in one program.

mod arithmetic;
mod common;
mod faults;
mod gemm;
mod grids;
mod host;
mod hostile;
mod instructions;
mod kernels;
mod matrix;
mod numeric_approx;
mod numeric_convert;
mod numeric_float;
mod numeric_half;
mod numeric_integer;
mod numeric_mma;
mod numeric_oracle;
mod outside;
mod page;
mod profile;
mod races;
mod races_law;
mod races_told;
mod refused;
mod unwritten;
mod warps;
