//! The matrices that absorption is about (paper 2.1.2, the paragraph after eq. 11; appendix C).
//!
//! ```text
//! q^C . k^C = (W^UQ_i c^Q) . (W^UK_i c^KV) = c^Q . (W^UQ_i^T W^UK_i) c^KV        [c',n] [n,c] = [c',c]
//! W^O_i v_i = (W^O_i W^UV_i) c^KV                                               [D,v] [v,c] = [D,c]
//! ```
//!
//! The paper says that W^UK "can be absorbed into" W^UQ and W^UV into W^O: between the latents stands one matrix for
//! each head, and no key is ever computed. That matrix has rank n, not c: its factors are all there is to it.
//!
//! **Trap: multiplying it out.** It then has c'·c elements instead of n·(c' + c): for V2 786,432 instead of 262,144, three
//! times the weights and the flops of a decoding step. So programs apply the factors one after the other, as
//! [`crate::model::attention`] does; what is absorbed is the work of expanding the cache, not the matrices.

use ndarray::{Array2, ArrayView2};

use crate::arithmetic::matmul::matmul;

/// W^UQ_i^T W^UK_i for one head: \[n,c'\], \[n,c\] -> \[c',c\]. Of rank n at most.
pub fn query_key(w_uq: ArrayView2<f64>, w_uk: ArrayView2<f64>) -> Array2<f64> {
    matmul(w_uq.t(), w_uk)
}

/// W^O_i W^UV_i for one head: \[D,v\], \[v,c\] -> \[D,c\]. Of rank v at most.
pub fn output_value(w_o: ArrayView2<f64>, w_uv: ArrayView2<f64>) -> Array2<f64> {
    matmul(w_o, w_uv)
}

/// Elements of one head's matrices between the latents: multiplied out, and as two factors.
///
/// ```
/// use dsv2_reference::paper::linalg::absorbed::elements;
/// assert_eq!(elements(1536, 512, 128), (786_432, 262_144)); // V2
/// ```
pub fn elements(q_lora_rank: usize, kv_lora_rank: usize, qk_nope_head_dim: usize) -> (usize, usize) {
    (q_lora_rank * kv_lora_rank, qk_nope_head_dim * (q_lora_rank + kv_lora_rank))
}
