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
mod property;
mod quantised_cache;
mod rope;
mod tensor_parallel;
mod token_dropping;
mod yarn;
