//! Sets of sectors of global memory.

use std::collections::HashMap;
use std::ops::Range;

/// Bytes of a sector: the least that comes from memory.
const SECTOR: u64 = 32;
/// Sectors of a piece of the set.
const PIECE: u64 = 4096;
const WORDS: usize = PIECE as usize / 64;

/// Different sectors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sectors {
    pieces: Vec<[u64; WORDS]>,
    /// Where the piece of a number is.
    places: HashMap<u64, usize>,
    /// The number and the place that were looked for last.
    last: Option<(u64, usize)>,
}

impl Sectors {
    /// Adds the sectors of some bytes.
    pub(crate) fn add(&mut self, bytes: Range<u64>) {
        for sector in bytes.start / SECTOR..bytes.end.div_ceil(SECTOR) {
            let (number, bit) = (sector / PIECE, sector % PIECE);
            let place = match self.last {
                Some((last, place)) if last == number => place,
                _ => *self.places.entry(number).or_insert_with(|| {
                    self.pieces.push([0; WORDS]);
                    self.pieces.len() - 1
                }),
            };
            self.last = Some((number, place));
            self.pieces[place][(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    /// Adds those of another set.
    pub(crate) fn add_all(&mut self, others: &Sectors) {
        for (number, place) in &others.places {
            let own = *self.places.entry(*number).or_insert_with(|| {
                self.pieces.push([0; WORDS]);
                self.pieces.len() - 1
            });
            for (word, other) in self.pieces[own].iter_mut().zip(&others.pieces[*place]) {
                *word |= other;
            }
        }
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_outside(&Sectors::default())
    }

    /// Bytes of those that another set does not have.
    pub(crate) fn bytes_outside(&self, others: &Sectors) -> u64 {
        let none = [0; WORDS];
        let outside = |(number, place): (&u64, &usize)| -> u64 {
            let other = others.places.get(number).map_or(&none, |place| &others.pieces[*place]);
            self.pieces[*place].iter().zip(other).map(|(word, other)| u64::from((word & !other).count_ones())).sum()
        };
        SECTOR * self.places.iter().map(outside).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_counts_once_and_whole() {
        let mut sectors = Sectors::default();
        sectors.add(40..44);
        sectors.add(32..36);
        assert_eq!(sectors.bytes(), 32);
        sectors.add(60..70);
        sectors.add(1 << 40..(1 << 40) + 64);
        assert_eq!(sectors.bytes(), 128);
    }

    #[test]
    fn what_another_set_has_is_not_outside_of_it() {
        let (mut some, mut others) = (Sectors::default(), Sectors::default());
        some.add(0..1 << 20);
        others.add(1 << 19..1 << 21);
        assert_eq!(some.bytes_outside(&others), 1 << 19);
        others.add_all(&some);
        assert_eq!((others.bytes(), some.bytes_outside(&others)), (1 << 21, 0));
    }
}
