//! What must hold for every model, input, routing, cache and partition, as laws with random cases (proptest).

mod balance_losses;
mod deepseek_v3;
mod expert_parallel;
mod latent_cache;
#[cfg(feature = "linalg")]
mod linalg;
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

#[cfg(not(feature = "linalg"))]
#[test]
#[ignore = "needs --features linalg, and OpenBLAS on the system (Debian: apt-get install libopenblas-dev)"]
fn laws_about_matrices() {}
