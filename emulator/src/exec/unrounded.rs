//! Whether two lanes' values are the same but for rounding.
//!
//! Where lanes hold copies of one sum, compilers let each lane add in an order of its own: `fma(x, x, y * y)` in one and
//! `fma(y, y, x * x)` in the other. The results differ in their last bits, and it does not matter which of them is kept.
//! How much is a last bit? No number is needed for that: both values are computed once more, from what the registers
//! hold, *without rounding*, and are the same or are not.
//!
//! Exact arithmetic would need numbers of any length; here it is arithmetic modulo a prime near 2^62, where sums,
//! products and quotients of equal fractions are equal, and those of others differ (they would agree by an accident of
//! one in 10^18). A float is a fraction. Functions like `ex2` are the same where their arguments are, and so are
//! conversions to fewer digits: what they cut off is part of a value like any other (`v - floor(v)`).
//!
//! The computation is followed backwards through registers that one instruction writes, and an instruction is believed
//! only if it gives once more what the register holds. Everything else (loads, matrix products, what a loop carries) is
//! taken as the value that it is.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::collective;
use super::registers::{LANES, Register, Registers, get, set};
use crate::lower::Kernel;
use crate::lower::instruction::{Collective, Instruction, Op};
use crate::numeric::format::Half;

/// The prime. No smaller power of 2 than 2^(PRIME - 1) is 1 there: modulo 2^61 - 1, 2^61 is, and a value would be the same
/// as 2^61 times it.
const PRIME: u64 = 0x3fff_ffff_ffff_d6bb;

/// Computations deeper than this are cut off: what lies below is taken as it is.
const DEPTH: u32 = 200;

/// What the bits of a register mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Meaning {
    Bits,
    F32,
    F64,
    Half(Half),
    /// Two in one register.
    Pair(Half),
}

impl Meaning {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "f32" => Self::F32,
            "f64" => Self::F64,
            "f16" => Self::Half(Half::F16),
            "bf16" => Self::Half(Half::Bf16),
            "f16x2" => Self::Pair(Half::F16),
            "bf16x2" => Self::Pair(Half::Bf16),
            _ => return None,
        })
    }

    /// Whether every number of another type is one of this type.
    fn holds(self, other: Self) -> bool {
        self == other || matches!((self, other), (Self::F64, Self::F32) | (Self::F32 | Self::F64, Self::Half(_)))
    }

    /// The numbers that a register holds.
    fn numbers(self, bits: u64) -> Vec<f64> {
        match self {
            Self::Bits => vec![],
            Self::F32 => vec![f64::from(f32::from_bits(bits as u32))],
            Self::F64 => vec![f64::from_bits(bits)],
            Self::Half(half) => vec![f64::from(half.value(bits as u16))],
            Self::Pair(half) => vec![f64::from(half.value(bits as u16)), f64::from(half.value((bits >> 16) as u16))],
        }
    }
}

/// A value without rounding, or the name of one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Exact {
    value: u64,
    meaning: Meaning,
}

/// How far the values of a register in two lanes, each of some warp, are apart, relative to the larger one; nothing if
/// they would differ without rounding too.
pub(super) fn apart(kernel: &Kernel, register: Register, lanes: [(&Registers, usize); 2]) -> Option<f64> {
    let bits = lanes.map(|(registers, lane)| get(registers, register, lane));
    if bits[0] == bits[1] {
        return Some(0.0);
    }
    let [first, second] = lanes.map(|(registers, lane)| {
        let mut search = Unrounded { kernel, registers: registers.clone(), known: HashMap::new() };
        search.exact(register, lane, Meaning::Bits, DEPTH)
    });
    if first != second {
        return None;
    }
    let [x, y] = bits.map(|bits| first.meaning.numbers(bits));
    let apart = x.iter().zip(&y).map(|(x, y)| (x - y).abs() / x.abs().max(y.abs()).max(f64::MIN_POSITIVE));
    // A sum may be infinite in one order, and not a number in another: that is no matter of last bits.
    let apart = apart.fold(0.0, |most: f64, one| if one.is_nan() { f64::NAN } else { most.max(one) });
    (!x.is_empty() && apart.is_finite()).then_some(apart)
}

/// Looks through the registers of a warp.
struct Unrounded<'a> {
    kernel: &'a Kernel,
    /// A copy, in which instructions are run again.
    registers: Registers,
    known: HashMap<(bool, u32, usize, Meaning), Exact>,
}

impl Unrounded<'_> {
    fn exact(&mut self, register: Register, lane: usize, meaning: Meaning, depth: u32) -> Exact {
        let key = (register.bits > 32, register.slot, lane, meaning);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let place = self.kernel.definitions().only(register, &self.kernel.code);
        let computed = place.filter(|_| depth > 0).and_then(|pc| self.computed(pc, register, lane, meaning, depth - 1));
        let exact = computed.unwrap_or_else(|| {
            let bits = get(&self.registers, register, lane);
            Exact { value: leaf(meaning, bits), meaning }
        });
        self.known.insert(key, exact);
        exact
    }

    /// What an instruction computes, if it is one of those that are understood and gives what the register holds.
    fn computed(&mut self, pc: usize, register: Register, lane: usize, meaning: Meaning, depth: u32) -> Option<Exact> {
        let instruction = &self.kernel.code[pc];
        match &instruction.op {
            Op::Lanes(run) => {
                let before = get(&self.registers, register, lane);
                run(&mut self.registers, 1 << lane);
                let after = get(&self.registers, register, lane);
                set(&mut self.registers, register, lane, before);
                if before != after || instruction.flow.writes.len() != 1 {
                    return None;
                }
                self.arithmetic((instruction, pc), register, lane, meaning, depth)
            }
            Op::Warp(_, Collective::Shuffle { mode, a, lane: select, clamp, .. }) => {
                let [select, clamp] = [select, clamp].map(|slot| self.registers.get::<u32>(*slot)[lane]);
                let (from, ok) = collective::source(*mode, lane as u32, select, clamp);
                let from = if ok { from as usize % LANES } else { lane };
                let source = Register { slot: *a, bits: 32 };
                if get(&self.registers, source, from) != get(&self.registers, register, lane) {
                    return None;
                }
                Some(self.exact(source, from, meaning, depth))
            }
            _ => None,
        }
    }

    fn arithmetic(
        &mut self,
        (instruction, pc): (&Instruction, usize),
        result: Register,
        lane: usize,
        meaning: Meaning,
        depth: u32,
    ) -> Option<Exact> {
        let opcode: &str = &instruction.opcode;
        let mut words = opcode.split('.');
        let name = words.next()?;
        let operands = instruction.flow.operands.as_slice();
        // What is cut off at the ends is not the sum any more.
        if words.clone().any(|word| matches!(word, "sat" | "satfinite" | "relu" | "oob")) {
            return None;
        }
        match (name, operands) {
            ("mov", [a]) => return Some(self.exact(*a, lane, meaning, depth)),
            ("selp", [a, b]) => {
                // The predicate may have changed since. Where both hold the same, it must not matter which was taken.
                let chosen = [*a, *b].map(|one| get(&self.registers, one, lane) == get(&self.registers, result, lane));
                let [first, second] = [*a, *b].map(|one| self.exact(one, lane, meaning, depth));
                return match chosen {
                    [true, true] => (first == second).then_some(first),
                    [is_first, _] => Some(if is_first { first } else { second }),
                };
            }
            _ => {}
        }
        let kinds: Vec<Meaning> = words.filter_map(Meaning::named).collect();
        let kind = *kinds.first()?;
        if name == "cvt" {
            // From float to float; the last type is that of the sources.
            let to_whole = opcode.split('.').any(|word| matches!(word, "rni" | "rzi" | "rmi" | "rpi"));
            let [_, from] = kinds[..] else { return None };
            let values: Vec<u64> = operands.iter().map(|a| self.exact(*a, lane, from, depth).value).collect();
            return match (kind, &values[..]) {
                (Meaning::Pair(_), [_, _]) => Some(Exact { value: named(pc as u64, &values), meaning: kind }),
                (Meaning::Pair(_), _) => None,
                (_, [value]) if kind.holds(from) && !to_whole => Some(Exact { value: *value, meaning: kind }),
                (_, [value]) => Some(Exact { value: named(pc as u64, &[*value]), meaning: kind }),
                _ => None,
            };
        }
        if matches!(kind, Meaning::Pair(_)) || kinds.len() != 1 {
            return None;
        }
        let values: Vec<u64> = operands.iter().map(|a| self.exact(*a, lane, kind, depth).value).collect();
        let value = match (name, &values[..]) {
            ("add", [a, b]) => plus(*a, *b),
            ("sub", [a, b]) => plus(*a, minus(*b)),
            ("mul", [a, b]) => times(*a, *b),
            ("fma" | "mad", [a, b, c]) => plus(times(*a, *b), *c),
            ("neg", [a]) => minus(*a),
            ("div", [a, b]) if *b != 0 => times(*a, inverse(*b)),
            ("rcp", [a]) if *a != 0 => inverse(*a),
            ("min" | "max", [a, b]) => named(u64::from(name == "min"), &[*a.min(b), *a.max(b)]),
            ("ex2" | "lg2" | "sqrt" | "rsqrt" | "sin" | "cos" | "tanh" | "abs", [a]) => named(pc as u64, &[*a]),
            _ => return None,
        };
        Some(Exact { value, meaning: kind })
    }
}

/// What no instruction is known for: the fraction that the bits are, or a name for them.
fn leaf(meaning: Meaning, bits: u64) -> u64 {
    match meaning.numbers(bits)[..] {
        [number] if number.is_finite() => fraction(number),
        _ => named(u64::MAX, &[bits]),
    }
}

/// A finite number modulo the prime.
fn fraction(number: f64) -> u64 {
    if number == 0.0 {
        return 0;
    }
    let bits = number.to_bits();
    let (exponent, fraction) = ((bits >> 52 & 0x7ff) as i64, bits & ((1 << 52) - 1));
    let (whole, exponent) = if exponent == 0 { (fraction, -1074) } else { (fraction | 1 << 52, exponent - 1075) };
    let scale = power(2, exponent.unsigned_abs());
    let value = times(whole, if exponent < 0 { inverse(scale) } else { scale });
    if number < 0.0 { minus(value) } else { value }
}

fn plus(a: u64, b: u64) -> u64 {
    (a + b) % PRIME
}

fn minus(a: u64) -> u64 {
    (PRIME - a) % PRIME
}

fn times(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(PRIME)) as u64
}

/// By Fermat: `a` to the power of the prime minus two.
fn inverse(a: u64) -> u64 {
    power(a, PRIME - 2)
}

fn power(a: u64, exponent: u64) -> u64 {
    let (mut square, mut result, mut rest) = (a, 1, exponent);
    while rest != 0 {
        if rest & 1 == 1 {
            result = times(result, square);
        }
        square = times(square, square);
        rest >>= 1;
    }
    result
}

/// A number for the result of a function that is not arithmetic.
fn named(function: u64, arguments: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (function, arguments).hash(&mut hasher);
    hasher.finish() % PRIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_are_a_field() {
        let numbers = [1.0, -3.0, 0.1, 1.5e-300, -2.25e200, f64::from_bits(1), 6.0];
        for x in numbers {
            let a = fraction(x);
            assert_eq!(times(a, inverse(a)), 1);
            assert_eq!(plus(a, fraction(-x)), 0);
            assert_eq!(times(fraction(0.5), plus(a, a)), a);
        }
        // Exact products and sums of doubles.
        assert_eq!(times(fraction(1.5), fraction(-0.375)), fraction(-0.5625));
        assert_eq!(plus(fraction(1.0), fraction(2f64.powi(-40))), fraction(1.0 + 2f64.powi(-40)));
        // Powers of 2 far apart.
        for exponent in 1..1024 {
            assert_ne!(fraction(2f64.powi(exponent)), 1);
        }
        // One that a double would round.
        assert_ne!(plus(fraction(1.0), fraction(2f64.powi(-80))), fraction(1.0));
    }
}
