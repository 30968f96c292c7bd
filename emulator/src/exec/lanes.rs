//! Arithmetic instructions as loops over the lanes of a warp.
//!
//! Lowering turns `add.s32 %r1, %r2, %r3` into `map2(1, 2, 3, u32::wrapping_add)`: a boxed closure that knows its
//! slots. With all lanes on, it is one loop over three arrays without a branch; with some off, only those that are on
//! are computed.

use super::registers::{CARRY, FULL, LANES, Lane, Pred, Registers, lanes};

/// An instruction that touches nothing but the registers of its warp; called with the lanes that execute it.
pub(crate) type Lanes = Box<dyn Fn(&mut Registers, u32) + Send + Sync>;

/// The loop of an instruction with so many sources, each with the file it lies in.
macro_rules! maps {
    ($doc:literal, $name:ident, $slots:pat => $slots_type:ty, $($kind:ident $slot:ident $x:ident),+) => {
        #[doc = $doc]
        pub(crate) fn $name<$($kind: Lane,)+ D: Lane>(
            d: u32,
            $slots: $slots_type,
            f: impl Fn($($kind),+) -> D + Send + Sync + 'static,
        ) -> Lanes {
            Box::new(move |registers, mask| {
                if mask == FULL {
                    // Copies, so that no source is the destination: the loop becomes vector code.
                    $(let $x = *registers.get::<$kind>($slot);)+
                    let out = registers.get_mut::<D>(d);
                    for lane in 0..LANES {
                        out[lane] = f($($x[lane]),+);
                    }
                } else {
                    for lane in lanes(mask) {
                        let value = f($(registers.get::<$kind>($slot)[lane]),+);
                        registers.get_mut::<D>(d)[lane] = value;
                    }
                }
            })
        }
    };
}

maps!("`d = f(a)`", map1, a => u32, A a x);
maps!("`d = f(a, b)`", map2, [a, b] => [u32; 2], A a x, B b y);
maps!("`d = f(a, b, c)`", map3, [a, b, c] => [u32; 3], A a x, B b y, C c z);

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

/// A predicate from the lanes in which it holds, which are computed for all lanes.
pub(crate) fn predicate(d: u32, holds: impl Fn(&Registers) -> u32 + Send + Sync + 'static) -> Lanes {
    Box::new(move |registers, mask| {
        let bits = holds(registers);
        registers.set_predicate(d, bits, mask);
    })
}

/// The lanes whose value has a property.
pub(crate) fn bits_where<T: Copy>(values: &[T], holds: impl Fn(T) -> bool) -> u32 {
    values.iter().enumerate().fold(0, |bits, (lane, value)| bits | u32::from(holds(*value)) << lane)
}

/// `d = if p { a } else { b }`
pub(crate) fn select<T: Lane>(d: u32, [a, b]: [u32; 2], p: Pred) -> Lanes {
    Box::new(move |registers, mask| {
        let bits = registers.test(p);
        for lane in lanes(mask) {
            let source = if bits >> lane & 1 == 1 { a } else { b };
            registers.get_mut::<T>(d)[lane] = registers.get::<T>(source)[lane];
        }
    })
}

/// `(d, carry) = f(a, b, c, carry)`: the extended-precision instructions, whose carry is a hidden predicate.
pub(crate) fn carry<T: Lane>(
    d: u32,
    [a, b, c]: [u32; 3],
    write_flag: bool,
    f: impl Fn(T, T, T, bool) -> (T, bool) + Send + Sync + 'static,
) -> Lanes {
    Box::new(move |registers, mask| {
        let (x, y, z) = (*registers.get::<T>(a), *registers.get::<T>(b), *registers.get::<T>(c));
        let carries = registers.predicates[CARRY as usize];
        let mut bits = 0;
        let out = registers.get_mut::<T>(d);
        for lane in lanes(mask) {
            let (value, carry) = f(x[lane], y[lane], z[lane], carries >> lane & 1 == 1);
            out[lane] = value;
            bits |= u32::from(carry) << lane;
        }
        if write_flag {
            registers.set_predicate(CARRY, bits, mask);
        }
    })
}
