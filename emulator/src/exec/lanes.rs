//! Arithmetic instructions as loops over the lanes of a warp.
//!
//! Lowering turns `add.s32 %r1, %r2, %r3` into `map2(1, 2, 3, u32::wrapping_add)`: a boxed closure that knows its
//! slots. With all lanes on, it is one loop over three arrays without a branch; with some off, only those that are on
//! are computed.

use super::registers::{FULL, LANES, Lane, Pred, Registers, lanes};

/// An instruction that touches nothing but the registers of its warp; called with the lanes that execute it.
pub(crate) type Lanes = Box<dyn Fn(&mut Registers, u32) + Send + Sync>;

/// `d = f(a)`
pub(crate) fn map1<A: Lane, D: Lane>(d: u32, a: u32, f: impl Fn(A) -> D + Send + Sync + 'static) -> Lanes {
    Box::new(move |registers, mask| {
        let x = *registers.get::<A>(a);
        let out = registers.get_mut::<D>(d);
        if mask == FULL {
            for lane in 0..LANES {
                out[lane] = f(x[lane]);
            }
        } else {
            lanes(mask).for_each(|lane| out[lane] = f(x[lane]));
        }
    })
}

/// `d = f(a, b)`
pub(crate) fn map2<A: Lane, B: Lane, D: Lane>(
    d: u32,
    [a, b]: [u32; 2],
    f: impl Fn(A, B) -> D + Send + Sync + 'static,
) -> Lanes {
    Box::new(move |registers, mask| {
        let (x, y) = (*registers.get::<A>(a), *registers.get::<B>(b));
        let out = registers.get_mut::<D>(d);
        if mask == FULL {
            for lane in 0..LANES {
                out[lane] = f(x[lane], y[lane]);
            }
        } else {
            lanes(mask).for_each(|lane| out[lane] = f(x[lane], y[lane]));
        }
    })
}

/// `d = f(a, b, c)`
pub(crate) fn map3<A: Lane, B: Lane, C: Lane, D: Lane>(
    d: u32,
    [a, b, c]: [u32; 3],
    f: impl Fn(A, B, C) -> D + Send + Sync + 'static,
) -> Lanes {
    Box::new(move |registers, mask| {
        let (x, y, z) = (*registers.get::<A>(a), *registers.get::<B>(b), *registers.get::<C>(c));
        let out = registers.get_mut::<D>(d);
        if mask == FULL {
            for lane in 0..LANES {
                out[lane] = f(x[lane], y[lane], z[lane]);
            }
        } else {
            lanes(mask).for_each(|lane| out[lane] = f(x[lane], y[lane], z[lane]));
        }
    })
}

/// `d = f(a, b, position, length)`: the bit-field insertions.
pub(crate) fn map4<T: Lane>(
    d: u32,
    [a, b, c, e]: [u32; 4],
    f: impl Fn(T, T, u32, u32) -> T + Send + Sync + 'static,
) -> Lanes {
    Box::new(move |registers, mask| {
        let (x, y) = (*registers.get::<T>(a), *registers.get::<T>(b));
        let (z, w) = (*registers.get::<u32>(c), *registers.get::<u32>(e));
        let out = registers.get_mut::<T>(d);
        lanes(mask).for_each(|lane| out[lane] = f(x[lane], y[lane], z[lane], w[lane]));
    })
}

/// A comparison: the lanes in which it holds, also of those that are off.
pub(crate) type Test = Box<dyn Fn(&Registers) -> u32 + Send + Sync>;

/// The lanes in which `f(a, b)` holds.
pub(crate) fn test2<A: Lane>([a, b]: [u32; 2], f: impl Fn(A, A) -> bool + Send + Sync + 'static) -> Test {
    Box::new(move |registers| {
        let (x, y) = (registers.get::<A>(a), registers.get::<A>(b));
        let mut bits = 0;
        for lane in 0..LANES {
            bits |= u32::from(f(x[lane], y[lane])) << lane;
        }
        bits
    })
}

/// `d = if p { a } else { b }`
pub(crate) fn select<T: Lane>(d: u32, [a, b]: [u32; 2], p: Pred) -> Lanes {
    Box::new(move |registers, mask| {
        let bits = registers.test(p);
        let (x, y) = (*registers.get::<T>(a), *registers.get::<T>(b));
        let out = registers.get_mut::<T>(d);
        for lane in lanes(mask) {
            out[lane] = if bits >> lane & 1 == 1 { x[lane] } else { y[lane] };
        }
    })
}

/// `(d, carry) = f(a, b, c, carry)`: the extended-precision instructions, whose carry is a hidden predicate.
pub(crate) fn carry<T: Lane>(
    d: u32,
    [a, b, c]: [u32; 3],
    flag: u32,
    write_flag: bool,
    f: impl Fn(T, T, T, bool) -> (T, bool) + Send + Sync + 'static,
) -> Lanes {
    Box::new(move |registers, mask| {
        let (x, y, z) = (*registers.get::<T>(a), *registers.get::<T>(b), *registers.get::<T>(c));
        let carries = registers.predicates[flag as usize];
        let mut bits = 0;
        let out = registers.get_mut::<T>(d);
        for lane in lanes(mask) {
            let (value, carry) = f(x[lane], y[lane], z[lane], carries >> lane & 1 == 1);
            out[lane] = value;
            bits |= u32::from(carry) << lane;
        }
        if write_flag {
            registers.set_predicate(flag, bits, mask);
        }
    })
}
