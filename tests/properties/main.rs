//! What must hold for every model, input, routing, cache and partition, as laws with random cases (proptest).

mod balance_losses;
mod deepseek_v3;
mod expert_parallel;
mod latent_cache;
mod masks;
mod mla;
mod models;
mod moe_layer;
mod moe_routing;
mod near_ties;
mod packed_formats;
mod quantised_cache;
mod rope;
mod tensor_parallel;
mod token_dropping;
mod yarn;

/// `linalg.rs` is a program of the package dsv2-reference: all else here need not be compiled again with LAPACK.
#[test]
#[ignore = "cargo test --features dsv2-reference/linalg --test linalg; needs OpenBLAS (Debian: apt-get install libopenblas-dev)"]
fn laws_about_matrices() {}
