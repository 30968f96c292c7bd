//! Running a kernel: launches hold blocks, blocks hold warps, warps hold the registers of 32 lanes.

pub(crate) mod access;
pub(crate) mod async_copy;
pub(crate) mod barrier;
pub(crate) mod block;
mod collective;
mod complain;
mod fresh;
pub(crate) mod lanes;
pub(crate) mod launch;
mod matrix;
mod meet;
pub(crate) mod registers;
mod specials;
mod system;
mod tell;
pub(crate) mod unknown;
mod unrounded;
mod view;
pub(crate) mod warp;
mod wmma;
