//! How large the shares are in which threads divide work: what comes out does not depend on them.

/// So many multiply-adds take as long as it takes to wake a thread: what is less stays together.
const WAKING: usize = 1 << 18;

/// Of items that take `each` so many multiply-adds: how many a thread is given at least (Rayon's `with_min_len`).
pub(crate) fn least(each: usize) -> usize {
    (WAKING / each.max(1)).max(1)
}
