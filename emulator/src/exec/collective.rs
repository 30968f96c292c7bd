//! Warp-wide instructions: shuffles, votes, matches and reductions (PTX manual, `shfl.sync`, `vote.sync`,
//! `match.sync`, `redux.sync`). They are called once all lanes of the member mask are there.

use super::registers::{LANES, Register, Registers, get, lanes};
use crate::lower::instruction::{Collective, Shuffle, Vote};

/// Runs an instruction that needs the registers only; `false` if it is another one.
pub(super) fn run(registers: &mut Registers, mask: u32, collective: &Collective) -> bool {
    match *collective {
        Collective::Sync => {}
        Collective::Shuffle { mode, d, valid, a, lane, clamp } => {
            shuffle(registers, mask, mode, [d, a, lane, clamp], valid);
        }
        Collective::Vote { mode, d, source } => {
            let yes = registers.test(source) & mask;
            match mode {
                Vote::Ballot => registers.put(d, &[yes; LANES], mask),
                Vote::All => registers.set_predicate(d, if yes == mask { mask } else { 0 }, mask),
                Vote::Any => registers.set_predicate(d, if yes != 0 { mask } else { 0 }, mask),
                Vote::Uniform => registers.set_predicate(d, if yes == mask || yes == 0 { mask } else { 0 }, mask),
            }
        }
        Collective::MatchAny { d, a } => {
            registers.put(d, &equal(registers, a, mask), mask);
        }
        Collective::MatchAll { d, same, a } => {
            let sets = equal(registers, a, mask);
            let all = lanes(mask).all(|lane| sets[lane] == mask);
            registers.put(d, &[if all { mask } else { 0 }; LANES], mask);
            if let Some(same) = same {
                registers.set_predicate(same, if all { mask } else { 0 }, mask);
            }
        }
        Collective::Reduce { d, a, combine } => {
            let values = registers.get::<u32>(a);
            if let Some(result) = lanes(mask).map(|lane| values[lane]).reduce(combine) {
                registers.put(d, &[result; LANES], mask);
            }
        }
        Collective::Elect { d, chosen } => {
            let first = mask & mask.wrapping_neg();
            registers.put(d, &[mask.trailing_zeros(); LANES], mask);
            registers.set_predicate(chosen, first, mask);
        }
        Collective::LoadMatrix { .. }
        | Collective::StoreMatrix { .. }
        | Collective::MoveMatrix { .. }
        | Collective::MatrixProduct(_)
        | Collective::LoadTile(_)
        | Collective::StoreTile(_)
        | Collective::TileProduct(_) => return false,
    }
    true
}

/// The lanes of a shuffle that get the value of a lane which does not take part, and which one it is.
pub(super) fn strangers(registers: &Registers, mask: u32, collective: &Collective) -> Vec<(usize, u32)> {
    let Collective::Shuffle { mode, lane: select, clamp, .. } = collective else { return vec![] };
    let [select, clamp] = [select, clamp].map(|slot| registers.get::<u32>(*slot));
    let from = |lane: usize| match source(*mode, lane as u32, select[lane], clamp[lane]) {
        (from, true) if mask >> (from & 31) & 1 == 0 => Some((lane, from & 31)),
        _ => None,
    };
    lanes(mask).filter_map(from).collect()
}

/// For each lane the lanes that have the same value.
fn equal(registers: &Registers, register: Register, mask: u32) -> [u32; LANES] {
    let value = |lane: usize| get(registers, register, lane);
    let mut out = [0; LANES];
    for lane in lanes(mask) {
        out[lane] = lanes(mask).filter(|other| value(*other) == value(lane)).fold(0, |set, other| set | 1 << other);
    }
    out
}

/// The lane from which a lane gets its value, and whether that is in range: the formula of the manual.
pub(super) fn source(mode: Shuffle, me: u32, select: u32, clamp: u32) -> (u32, bool) {
    let (select, clamp, segment) = (select & 31, clamp & 31, clamp >> 8 & 31);
    let last = me & segment | clamp & !segment;
    let first = me & segment;
    match mode {
        Shuffle::Up => (me.wrapping_sub(select), me as i32 - select as i32 >= last as i32),
        Shuffle::Down => (me + select, me + select <= last),
        Shuffle::Butterfly => (me ^ select, me ^ select <= last),
        Shuffle::Index => {
            let from = first | select & !segment & 31;
            (from, from <= last)
        }
    }
}

/// A source lane that does not take part gives an undefined value; here it is the lane's own
/// register as it is.
fn shuffle(registers: &mut Registers, mask: u32, mode: Shuffle, slots: [u32; 4], valid: Option<u32>) {
    let [d, a, b, c] = slots;
    let values = *registers.get::<u32>(a);
    let (selectors, clamps) = (*registers.get::<u32>(b), *registers.get::<u32>(c));
    let (mut out, mut in_range) = ([0; LANES], 0);
    for lane in lanes(mask) {
        let (from, ok) = source(mode, lane as u32, selectors[lane], clamps[lane]);
        out[lane] = values[if ok { (from & 31) as usize } else { lane }];
        in_range |= u32::from(ok) << lane;
    }
    registers.put(d, &out, mask);
    if let Some(valid) = valid {
        registers.set_predicate(valid, in_range, mask);
    }
}
