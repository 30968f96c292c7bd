//! The right numbers in the wrong places, and scores that are hidden or seen where they should not be.

use dsv2_reference::stage::Layout;

use super::Seen;
use super::places::Places;

/// How many budgets a row is off at least, if its numbers are in another order. (Rows that are off by a few per cent in bf16
/// look alike when they are sorted, too.)
const FAR: f64 = 30.0;

/// Each row has its numbers in another order.
pub fn other_order(seen: &Seen<'_>) -> Option<String> {
    if seen.width() < 2 {
        return None;
    }
    let usual = seen.usual_row();
    let sorted = |row: &[f64]| {
        let mut row = row.to_vec();
        row.sort_by(f64::total_cmp);
        row
    };
    let (mut rows, mut moved) = (0, false);
    for (_, got, want) in seen.rows() {
        rows += 1;
        let off = seen.row_error(&got, &want, usual);
        if (1.0..FAR).contains(&off) || !seen.same_row(&sorted(&got), &sorted(&want), usual) {
            return None;
        }
        moved |= off >= FAR;
    }
    (rows > 0 && moved).then(|| "each row holds the right numbers in another order".to_owned())
}

/// Each row is that of the token before, or after.
pub fn neighbours(seen: &Seen<'_>) -> Option<String> {
    let places = Places::of(seen)?;
    let usual = seen.usual_row();
    let width = seen.width();
    let (got, want) = (seen.got.as_standard_layout(), seen.want.as_standard_layout());
    let (got, want) = (got.as_slice()?, want.as_slice()?);
    let row = |all: &[f64], at: usize| all[at * width..(at + 1) * width].to_vec();
    let shifted = |step: isize| {
        let mut shifted = 0;
        for (at, (b, h, s)) in places.rows() {
            let Some(from) = s.checked_add_signed(step).filter(|from| *from < places.length) else { continue };
            let from = places.row(b, h, from);
            if !(seen.compares(at) && seen.compares(from)) {
                continue;
            }
            if !seen.same_row(&row(got, at), &row(want, from), usual) {
                return false;
            }
            shifted += 1;
        }
        shifted > 1
    };
    [(-1, "before"), (1, "after")]
        .into_iter()
        .find(|(step, _)| shifted(*step))
        .map(|(_, which)| format!("each row is that of the token {which}"))
}

/// Scores that are minus infinity and should not be, or the other way round.
pub fn masked_otherwise(seen: &Seen<'_>) -> Option<String> {
    if seen.stage.layout != Layout::Scores {
        return None;
    }
    let hidden = |x: f64| x == f64::NEG_INFINITY;
    let (mut too_many, mut too_few, mut later) = (0, 0, 0);
    let places = Places::of(seen)?;
    let past = seen.width().checked_sub(places.length)?;
    for (at, got, want) in seen.rows() {
        let (_, _, query) = places.place(at);
        for (key, (x, y)) in got.iter().zip(&want).enumerate() {
            too_many += usize::from(hidden(*x) && !hidden(*y));
            too_few += usize::from(!hidden(*x) && hidden(*y));
            later += usize::from(!hidden(*x) && hidden(*y) && key > past + query);
        }
    }
    let scores = |n: usize| if n == 1 { "1 score is".to_owned() } else { format!("{n} scores are") };
    let seen_too = (too_few > 0).then(|| {
        let of_later = match later {
            0 => "",
            all if all == too_few => ", all of later tokens",
            _ => ", some of later tokens",
        };
        format!("{} not masked and should be{of_later}", scores(too_few))
    });
    let hidden_too = (too_many > 0).then(|| format!("{} masked and should not be", scores(too_many)));
    let said: Vec<String> = seen_too.into_iter().chain(hidden_too).collect();
    (!said.is_empty()).then(|| said.join(", "))
}
