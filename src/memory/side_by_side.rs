//! Golden cases side by side.

use super::{Need, Size};

/// How many cases may run at a time where each takes `needs`, and what the largest of them take together: as many as there are
/// processors, or fewer, if there is not the memory for them; at least one.
pub fn side_by_side(mut needs: Vec<u64>, there_is: Option<Size>) -> (usize, Need) {
    needs.sort_unstable_by(|a, b| b.cmp(a));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let together = |n: usize| needs.iter().take(n).fold(0, |sum: u64, need| sum.saturating_add(*need));
    let fits = |n: &usize| there_is.is_none_or(|there_is| Size(together(*n)) <= there_is);
    let most = (1..=processors.min(needs.len())).rev().find(fits).unwrap_or(1);
    (most, Need { size: Size(together(most)), less: "fewer or smaller cases take less (--case)" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_cases_run_at_a_time_where_there_is_less_memory() {
        let needs = || vec![10, 40, 20, 30];
        let (most, need) = side_by_side(needs(), None);
        assert!(most >= 1 && need.size >= Size(40));
        assert_eq!(side_by_side(needs(), Some(Size(69))).0, 1);
        assert_eq!(side_by_side(needs(), Some(Size(69))).1.size, Size(40));
        // too little for any is for the plan to refuse
        assert_eq!(side_by_side(needs(), Some(Size(5))).1.size, Size(40));
        assert_eq!(side_by_side(vec![u64::MAX; 3], Some(Size(5))).0, 1);
        assert_eq!(side_by_side(Vec::new(), None).1.size, Size(0));
    }
}
