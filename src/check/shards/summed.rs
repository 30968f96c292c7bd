//! Which sums of a model are over ranks: what came in parts tells.

use dsv2_reference::stage::convention::name::GATE_UP_PROJ;
use dsv2_reference::stage::table::*;

use super::plans::{How, kind};
use crate::taps::PartialSums;

/// What is read off a tensor that so many ranks had parts of, which were put together in this way: heads or columns before a sum,
/// or parts of the sum. Whoever splits attention by heads splits feed-forward networks, too: a dump of a mixture of experts alone
/// has no columns that show it. Not the other way round: experts are on several ranks where heads are not.
pub fn read_off(sums: &mut PartialSums, name: &str, how: How, ranks: usize) {
    match (how, kind(name)) {
        (
            How::Columns | How::Heads,
            Some(Q_PROJ | Q_B_PROJ | Q_PE | KV_B_PROJ | ATTN_SCORES | ATTN_WEIGHTS | ATTN_OUTPUT),
        )
        | (How::Sum, Some(O_PROJ)) => *sums = PartialSums::over(ranks),
        (How::Columns, Some(GATE_PROJ | UP_PROJ | GATE_UP_PROJ))
        | (How::Sum, Some(DOWN_PROJ | EXPERTS | SHARED_EXPERTS | MLP)) => sums.feed_forward = ranks,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_tell_of_all_sums_columns_of_some_and_what_is_no_part_of_a_sum_of_none() {
        let of = |name: &str, how| {
            let mut sums = PartialSums::default();
            read_off(&mut sums, name, how, 4);
            [sums.attention, sums.feed_forward]
        };
        for (name, how, expected) in [
            ("model.layers.1.self_attn.q_b_proj", How::Columns, [4, 4]),
            ("model.layers.1.self_attn.attn_scores", How::Heads, [4, 4]),
            ("module.model.layers.1.self_attn", How::Sum, [4, 4]),
            ("model.layers.0.mlp.gate_up_proj", How::Columns, [1, 4]),
            ("model.layers.1.mlp.experts", How::Sum, [1, 4]),
            ("model.layers.1.self_attn.q_a_proj", How::Columns, [1, 1]),
            ("model.layers.1.self_attn.o_proj", How::Sequence, [1, 1]),
            ("lm_head", How::Columns, [1, 1]),
            ("model.embed_tokens", How::Sum, [1, 1]),
        ] {
            assert_eq!(of(name, how), expected, "{name}");
        }
    }
}
