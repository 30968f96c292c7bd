//! The registers of a warp, stored by register and not by thread.
//!
//! A register is an array of 32 values, one for each lane, so that an instruction is one loop over adjacent values,
//! which the compiler turns into vector code. There are two files, of 32 and 64 bits; registers of 8 and 16 bits live
//! in the first with their upper bits zero. A predicate is one `u32`, a bit for each lane. Constants and special
//! registers are slots as well, so that an operand is never anything but a slot.

/// The lanes of a warp.
pub(crate) const LANES: usize = 32;

/// All 32 lanes.
pub(crate) const FULL: u32 = u32::MAX;

/// The hidden predicate of `add.cc` and its relatives (PTX manual, "Extended-Precision Arithmetic Instructions").
pub(crate) const CARRY: u32 = 0;

/// A register and its declared width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Register {
    pub(crate) slot: u32,
    pub(crate) bits: u32,
}

/// The register files of one warp.
#[derive(Clone, Debug, Default)]
pub(crate) struct Registers {
    pub(crate) narrow: Vec<[u32; LANES]>,
    pub(crate) wide: Vec<[u64; LANES]>,
    pub(crate) predicates: Vec<u32>,
    /// Warp instructions so far: what `%clock` shows.
    pub(crate) steps: u64,
    /// Whether a block has run on them.
    pub(crate) used: bool,
}

/// A value that a register file holds: `u32` or `u64`.
pub(crate) trait Lane: Copy + Default + 'static {
    fn file(registers: &Registers) -> &[[Self; LANES]];
    fn file_mut(registers: &mut Registers) -> &mut [[Self; LANES]];
}

macro_rules! files {
    ($($value:ty: $file:ident),+) => {$(
        impl Lane for $value {
            #[inline(always)]
            fn file(registers: &Registers) -> &[[Self; LANES]] {
                &registers.$file
            }

            #[inline(always)]
            fn file_mut(registers: &mut Registers) -> &mut [[Self; LANES]] {
                &mut registers.$file
            }
        }
    )+};
}

files!(u32: narrow, u64: wide);

/// A predicate operand: `p` or `!p`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pred {
    pub(crate) slot: u32,
    pub(crate) negated: bool,
}

impl Registers {
    /// All registers zero.
    pub(crate) fn new(narrow: usize, wide: usize, predicates: usize) -> Self {
        Self {
            narrow: vec![[0; LANES]; narrow],
            wide: vec![[0; LANES]; wide],
            predicates: vec![0; predicates],
            steps: 0,
            used: false,
        }
    }

    #[inline(always)]
    pub(crate) fn get<T: Lane>(&self, slot: u32) -> &[T; LANES] {
        &T::file(self)[slot as usize]
    }

    #[inline(always)]
    pub(crate) fn get_mut<T: Lane>(&mut self, slot: u32) -> &mut [T; LANES] {
        &mut T::file_mut(self)[slot as usize]
    }

    /// The lanes in which a predicate operand is true.
    #[inline(always)]
    pub(crate) fn test(&self, pred: Pred) -> u32 {
        let bits = self.predicates[pred.slot as usize];
        if pred.negated { !bits } else { bits }
    }

    /// Sets a predicate in the lanes of `mask`.
    #[inline(always)]
    pub(crate) fn set_predicate(&mut self, slot: u32, bits: u32, mask: u32) {
        let old = &mut self.predicates[slot as usize];
        *old = *old & !mask | bits & mask;
    }

    /// Sets a register in the lanes of `mask`.
    pub(crate) fn put<T: Lane>(&mut self, slot: u32, values: &[T; LANES], mask: u32) {
        let target = self.get_mut::<T>(slot);
        for lane in lanes(mask) {
            target[lane] = values[lane];
        }
    }
}

/// The lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        (rest != 0).then(|| {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            lane
        })
    })
}

/// Writes one lane of a register of any width.
#[inline]
pub(crate) fn set(registers: &mut Registers, register: Register, lane: usize, value: u64) {
    debug_assert!(lane < LANES);
    match register.bits {
        64 => registers.wide[register.slot as usize][lane] = value,
        32 => registers.narrow[register.slot as usize][lane] = value as u32,
        bits => registers.narrow[register.slot as usize][lane] = value as u32 & ((1 << bits) - 1),
    }
}

/// Reads one lane of a register of any width.
#[inline]
pub(crate) fn get(registers: &Registers, register: Register, lane: usize) -> u64 {
    match register.bits {
        64 => registers.wide[register.slot as usize][lane],
        _ => u64::from(registers.narrow[register.slot as usize][lane]),
    }
}
