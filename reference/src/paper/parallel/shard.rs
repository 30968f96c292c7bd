//! What one of P ranks holds of a model that is split by heads and by columns of the MLPs.
//!
//! A rank is a model of its own: the config of [`Rank::config`], with H/P heads and MLPs of 1/P the width, and the
//! weights of [`Shard`], which hands out the rank's slice of each tensor. So all modules load and run as they are.
//!
//! | weight \[out,in\] | rank p has | because |
//! |---|---|---|
//! | `q_proj`, `q_b_proj` \[H(n+r),·\], `kv_b_proj` \[H(n+v),c\] | the rows of heads pH/P to (p+1)H/P - 1 | heads do not see each other |
//! | `o_proj` \[D,H v\] | the columns of these heads | u = W^O \[o_1; ...; o_H\] is a sum over heads |
//! | `gate_proj`, `up_proj` \[I,D\] and their biases | rows p I/P to (p+1) I/P - 1 | the activation works number by number |
//! | `down_proj` \[D,I\] | the same columns | a sum over I |
//! | `o_proj.bias`, `down_proj.bias` | rank 0: all of it; the others: zeros | it is added once, not P times |
//! | everything else | all of it | see below |
//!
//! The MLPs are the dense one, each routed expert, and the shared experts as the one MLP as which they are stored.
//!
//! **The latents are not split.** `q_a_proj`, `kv_a_proj_with_mqa` and their norms make one vector for all heads, and
//! the norms need all of it. So every rank computes and caches the same c + r numbers a token: MLA's cache cannot be
//! split by heads, and P ranks hold it P times. (Multi-head attention's cache shrinks with P.) The router stands on
//! every rank too, and decides alike; so do the norms, the embedding and the output head (ours: programs often split
//! the last two by vocabulary).
//!
//! **Trap: the bias of a projection whose results are summed.** With the whole of `o_proj.bias` on every rank the sum
//! has it P times (text-generation-inference#1036 is about one).
//!
//! **Trap: heads go in blocks.** In `kv_b_proj` a head is n rows of keys and then v rows of values; a block of the
//! matrix is a block of heads, but half of its rows is *not* "all keys".

use std::ops::Range;
use std::sync::Arc;

use crate::weights::WeightSource;
use crate::weights::finite::Watch;
use crate::{DeepseekV2Config, Error, Result, Tensor};

/// Rank `index` of `of` ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    index: usize,
    of: usize,
}

impl Rank {
    /// All ranks, in order.
    pub fn all(ranks: usize) -> impl Iterator<Item = Rank> {
        (0..ranks).map(move |index| Rank { index, of: ranks })
    }

    /// p.
    pub fn index(self) -> usize {
        self.index
    }

    /// P.
    pub fn of(self) -> usize {
        self.of
    }

    /// The config of the rank's part: H, and the widths of the MLPs, divided by P.
    ///
    /// # Errors
    /// If P does not divide them.
    pub fn config(self, whole: &DeepseekV2Config) -> Result<DeepseekV2Config> {
        let share = |field: &str, size: usize| {
            let refused = || Error::config(field, format!("a multiple of the number of ranks, {}", self.of), size);
            if size.is_multiple_of(self.of) { Ok(size / self.of) } else { Err(refused()) }
        };
        let key_value_heads = whole.num_key_value_heads;
        Ok(DeepseekV2Config {
            num_attention_heads: share("num_attention_heads", whole.num_attention_heads)?,
            num_key_value_heads: key_value_heads.map(|heads| share("num_key_value_heads", heads)).transpose()?,
            intermediate_size: share("intermediate_size", whole.intermediate_size)?,
            moe_intermediate_size: share("moe_intermediate_size", whole.moe_intermediate_size)?,
            ..whole.clone()
        })
    }

    /// Its part of a side that is `size` long in the part.
    fn range(self, size: usize) -> Range<usize> {
        self.index * size..(self.index + 1) * size
    }
}

/// How a tensor is divided among the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// A block of rows for each rank.
    Rows,
    /// A block of columns for each rank: the ranks' products are summed.
    Columns,
    /// All of it on rank 0, zeros elsewhere: the bias behind such a sum.
    FirstRank,
    /// All of it on every rank.
    Replicated,
}

impl Split {
    /// Of the checkpoint's tensor `name`.
    pub fn of(name: &str) -> Self {
        let mut parts = name.rsplit('.');
        let (parameter, module) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match (module, parameter) {
            ("q_proj" | "q_b_proj" | "kv_b_proj" | "gate_proj" | "up_proj", _) => Split::Rows,
            ("o_proj" | "down_proj", "weight") => Split::Columns,
            ("o_proj" | "down_proj", _) => Split::FirstRank,
            _ => Split::Replicated,
        }
    }
}

/// The rank's slices of the tensors of a whole model.
pub struct Shard<'a> {
    whole: &'a dyn WeightSource,
    rank: Rank,
}

impl<'a> Shard<'a> {
    /// The part that `rank` has of `whole`.
    pub fn new(whole: &'a dyn WeightSource, rank: Rank) -> Self {
        Shard { whole, rank }
    }

    /// `whole`, asked for a tensor that is P times as long on one axis.
    fn whole(&self, name: &str, shape: &[usize], axis: usize) -> Result<Tensor> {
        let mut shape = shape.to_vec();
        shape[axis] = shape[axis].saturating_mul(self.rank.of);
        self.whole.tensor(name, &shape)
    }
}

impl WeightSource for Shard<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        match (Split::of(name), shape) {
            (Split::Rows, [rows, ..]) => Ok(self.whole(name, shape, 0)?.rows(self.rank.range(*rows))),
            (Split::Columns, [_, columns]) => {
                select_columns(name, &self.whole(name, shape, 1)?, self.rank.range(*columns))
            }
            (Split::FirstRank, _) if self.rank.index > 0 => {
                let whole = self.whole.tensor(name, shape)?;
                Ok(Tensor::from_values(whole.dtype(), shape, std::iter::repeat_n(0.0, whole.len())))
            }
            _ => self.whole.tensor(name, shape),
        }
    }

    fn names(&self) -> Option<Vec<String>> {
        self.whole.names()
    }

    fn watch(&self) -> Arc<Watch> {
        self.whole.watch()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let mut shape = self.whole.shape(name)?;
        let axis = match Split::of(name) {
            Split::Rows => 0,
            Split::Columns => 1,
            Split::FirstRank | Split::Replicated => return Some(shape),
        };
        *shape.get_mut(axis)? /= self.rank.of;
        Some(shape)
    }
}

/// Some columns of a matrix, copied.
fn select_columns(name: &str, whole: &Tensor, columns: Range<usize>) -> Result<Tensor> {
    let size = whole.dtype().size();
    let row = whole.shape()[1] * size;
    let bytes = whole.bytes();
    let rows = bytes.chunks_exact(row.max(1));
    let bytes: Vec<u8> = rows.flat_map(|row| &row[columns.start * size..columns.end * size]).copied().collect();
    let range = 0..bytes.len();
    Tensor::new(name, whole.dtype(), &[whole.shape()[0], columns.len()], Arc::new(bytes), range)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2, array};

    use super::*;
    use crate::Dtype;

    /// 0, 1, 2, ... in any shape asked for.
    struct Counting;

    impl WeightSource for Counting {
        fn tensor(&self, _: &str, shape: &[usize]) -> Result<Tensor> {
            let values = (0..shape.iter().product::<usize>()).map(|i| i as f64);
            Ok(Tensor::from_values(Dtype::F32, shape, values))
        }
        fn names(&self) -> Option<Vec<String>> {
            None
        }
    }

    fn matrix(rank: usize, name: &str) -> Array2<f64> {
        let rank = Rank { index: rank, of: 2 };
        Shard::new(&Counting, rank).tensor(name, &[2, 2]).unwrap().to_array()
    }

    #[test]
    fn blocks_of_rows_and_of_columns() {
        for name in ["q_proj.weight", "a.q_b_proj.weight", "kv_b_proj.weight", "experts.3.up_proj.weight"] {
            assert_eq!(matrix(0, name), array![[0.0, 1.0], [2.0, 3.0]], "{name}");
            assert_eq!(matrix(1, name), array![[4.0, 5.0], [6.0, 7.0]], "{name}");
        }
        for name in ["self_attn.o_proj.weight", "mlp.shared_experts.down_proj.weight"] {
            assert_eq!(matrix(0, name), array![[0.0, 1.0], [4.0, 5.0]], "{name}");
            assert_eq!(matrix(1, name), array![[2.0, 3.0], [6.0, 7.0]], "{name}");
        }
        for name in ["mlp.gate.weight", "kv_a_proj_with_mqa.weight", "q_a_proj.weight", "norm.weight"] {
            assert_eq!(matrix(1, name), array![[0.0, 1.0], [2.0, 3.0]], "{name}");
        }
    }

    #[test]
    fn a_bias_behind_a_sum_is_on_the_first_rank_only() {
        let bias = |rank: Rank, name: &str| -> Array1<f64> {
            Shard::new(&Counting, rank).tensor(name, &[3]).unwrap().to_array()
        };
        let found: Vec<_> = Rank::all(2).map(|rank| bias(rank, "self_attn.o_proj.bias")).collect();
        assert_eq!(found, [array![0.0, 1.0, 2.0], array![0.0, 0.0, 0.0]]);
        let found: Vec<_> = Rank::all(2).map(|rank| bias(rank, "mlp.up_proj.bias")).collect();
        assert_eq!(found, [array![0.0, 1.0, 2.0], array![3.0, 4.0, 5.0]]);
    }

    #[test]
    fn a_part_has_fewer_heads_and_narrower_mlps() {
        let whole = DeepseekV2Config { moe_intermediate_size: 1408, ..DeepseekV2Config::default() };
        let part = Rank { index: 3, of: 4 }.config(&whole).unwrap();
        let sizes = (part.num_attention_heads, part.intermediate_size, part.moe_intermediate_size);
        assert_eq!(sizes, (8, 2752, 352));
        assert_eq!((part.kv_lora_rank, part.hidden_size), (whole.kv_lora_rank, whole.hidden_size));
        let refused = Rank { index: 0, of: 3 }.config(&whole).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "config: num_attention_heads: expected a multiple of the number of ranks, 3, found 32"
        );
    }
}
