//! Batches of rows of different lengths: padding on the left, and the mask that follows from it.

/// Rows of one length, padding before the shorter ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Padded {
    /// The tokens, row by row.
    pub ids: Vec<Vec<i64>>,
    /// Which of them are no padding.
    pub mask: Vec<Vec<bool>>,
}

/// Pads rows on the left, where a model that goes on at the right end wants it.
pub fn left_padded(rows: &[Vec<i64>], pad: i64) -> Padded {
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let with = |row: &Vec<i64>| [vec![pad; width - row.len()], row.clone()].concat();
    let mask = |row: &Vec<i64>| [vec![false; width - row.len()], vec![true; row.len()]].concat();
    Padded { ids: rows.iter().map(with).collect(), mask: rows.iter().map(mask).collect() }
}

/// The token that counts as padding where no mask is given: `pad_token_id`, unless it also ends a text (then it could be
/// either).
///
/// **Trap.** So does `generate` of Transformers. A forward pass infers nothing: there, every token counts.
pub fn padding_token(pad_token_id: Option<i64>, eos_token_ids: &[i64]) -> Option<i64> {
    pad_token_id.filter(|pad| !eos_token_ids.contains(pad))
}

/// The positions of a row: tokens count from 0 on, padding has 0.
pub fn positions(mask: &[bool]) -> Vec<i64> {
    let mut next = 0..;
    mask.iter().map(|real| real.then(|| next.next()).flatten().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rows_are_padded_on_the_left_and_count_from_their_first_token() {
        let padded = left_padded(&[vec![5, 6, 7], vec![8], vec![]], 0);
        assert_eq!(padded.ids, [[5, 6, 7], [0, 0, 8], [0, 0, 0]]);
        assert_eq!(padded.mask, [[true, true, true], [false, false, true], [false, false, false]]);
        assert_eq!(
            padded.mask.iter().map(|mask| positions(mask)).collect::<Vec<_>>(),
            [[0, 1, 2], [0, 0, 0], [0, 0, 0]]
        );
        assert_eq!(positions(&[true, false, true]), [0, 0, 1]);
        assert_eq!(left_padded(&[], 0), Padded { ids: vec![], mask: vec![] });
    }
}
