//! PTX manual, "Data Movement and Conversion Instructions: cvt", also the packed forms.

use super::case::{Case, Lowered};
use super::flow::Rule;
use super::instruction::Op;
use super::shapes::no_type;
use super::slots::Constant;
use crate::exec::lanes::{Lanes, map1, map2, map3};
use crate::exec::registers::Register;
use crate::numeric::Rounding;
use crate::numeric::convert::{self, Conversion, Float, Integer};
use crate::numeric::format::{Half, f32_to_tf32, f32_to_tf32_nearest, f32_to_tf32_zero, pack};
use crate::numeric::fp8::{self, Fp8};
use crate::parse::types::Type;

/// Lowers `cvt`.
pub(crate) fn lower(case: &mut Case) -> Lowered<Op> {
    let rounding = case.rounding();
    let (ftz, saturate) = (case.take("ftz"), case.take("sat"));
    let (satfinite, relu) = (case.take("satfinite"), case.take("relu"));
    if case.take("pack") {
        return if saturate { pack_integers(case) } else { Err("the modifier .sat is missing".to_string()) };
    }
    let words: Vec<&str> = case.modifiers().to_vec();
    if words.contains(&"tf32") && !ftz && !saturate {
        return to_tf32(case, rounding, satfinite, relu);
    }
    if words.iter().any(|word| word.ends_with("x2") || *word == "tf32") {
        if ftz || saturate {
            return Err("packed conversions have neither .ftz nor .sat".to_string());
        }
        return packed(case, rounding, satfinite, relu);
    }
    let (to, from) = (case.kind()?, case.kind()?);
    case.finish(2)?;
    let conversion = Conversion { from: number(from)?, to: number(to)?, rounding, ftz, saturate, relu, satfinite };
    let floats = |kind| matches!(kind, convert::Type::Float(_));
    if (floats(conversion.from) != floats(conversion.to) || narrows(from, to)) && rounding.is_none() {
        return Err("a rounding modifier is missing".to_string());
    }
    let d = case.register(case.operand(0)?, to.bits())?;
    let a = case.value(case.operand(1)?, from)?;
    if d.bits < to.bits() || a.bits < from.bits() {
        return Err("a register is narrower than its type".to_string());
    }
    Ok(Op::Lanes(scalar(d, a, conversion)))
}

fn narrows(from: Type, to: Type) -> bool {
    matches!((number(from), number(to)), (Ok(convert::Type::Float(_)), Ok(convert::Type::Float(_))))
        && to.bits() < from.bits()
}

fn number(kind: Type) -> Lowered<convert::Type> {
    Ok(match kind {
        Type::U8 => convert::Type::Integer(Integer::U8),
        Type::S8 => convert::Type::Integer(Integer::S8),
        Type::U16 => convert::Type::Integer(Integer::U16),
        Type::S16 => convert::Type::Integer(Integer::S16),
        Type::U32 => convert::Type::Integer(Integer::U32),
        Type::S32 => convert::Type::Integer(Integer::S32),
        Type::U64 => convert::Type::Integer(Integer::U64),
        Type::S64 => convert::Type::Integer(Integer::S64),
        Type::F16 => convert::Type::Float(Float::F16),
        Type::Bf16 => convert::Type::Float(Float::Bf16),
        Type::F32 => convert::Type::Float(Float::F32),
        Type::F64 => convert::Type::Float(Float::F64),
        _ => return Err(no_type(kind)),
    })
}

/// The common conversions have loops of their own; the rest looks at its types for every value.
fn scalar(d: Register, a: Register, conversion: Conversion) -> Lanes {
    use convert::Type::{Float as F, Integer as I};
    let plain = !conversion.ftz && !conversion.saturate && !conversion.relu && !conversion.satfinite;
    let rounding = conversion.rounding;
    if plain && d.bits == 32 && a.bits <= 32 {
        match (conversion.from, conversion.to, rounding) {
            (I(Integer::S32), F(Float::F32), Some(Rounding::Nearest)) => {
                return map1(d.slot, a.slot, |a: u32| (a as i32 as f32).to_bits());
            }
            (I(Integer::U32), F(Float::F32), Some(Rounding::Nearest)) => {
                return map1(d.slot, a.slot, |a: u32| (a as f32).to_bits());
            }
            (F(Float::Bf16), F(Float::F32), _) => return map1(d.slot, a.slot, |a: u32| Half::Bf16.widen(a as u16)),
            (F(Float::F16), F(Float::F32), _) => return map1(d.slot, a.slot, |a: u32| Half::F16.widen(a as u16)),
            _ => {}
        }
    }
    if let (I(from), I(to), true) = (conversion.from, conversion.to, plain) {
        // A result in a wider register is extended by the target's sign.
        let keep = ones(d.bits);
        let f = move |a: u64| to.extend(from.extend(a)) & keep;
        return between_files(d, a, f);
    }
    let keep = ones(d.bits);
    between_files(d, a, move |a: u64| {
        let bits = conversion.apply(a);
        (if let I(to) = conversion.to { to.extend(bits) } else { bits }) & keep
    })
}

/// `d = f(a)` where each of the two lies in the narrow or in the wide file.
fn between_files(d: Register, a: Register, f: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Lanes {
    match (a.bits > 32, d.bits > 32) {
        (false, false) => map1(d.slot, a.slot, move |a: u32| f(u64::from(a)) as u32),
        (false, true) => map1(d.slot, a.slot, move |a: u32| f(u64::from(a))),
        (true, false) => map1(d.slot, a.slot, move |a: u64| f(a) as u32),
        (true, true) => map1(d.slot, a.slot, f),
    }
}

fn ones(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// `cvt.rn`, `.rz` and `.rna` to `.tf32`.
fn to_tf32(case: &mut Case, rounding: Option<Rounding>, satfinite: bool, relu: bool) -> Lowered<Op> {
    let away = case.take("rna");
    case.kind_is("tf32")?;
    case.kind_is("f32")?;
    case.finish(2)?;
    let (d, a) = (case.target(0, Type::B32)?, case.source(1, Type::F32)?);
    let round: fn(u32) -> u32 = match (away, rounding) {
        (true, None) if !relu => f32_to_tf32,
        (false, Some(Rounding::Nearest)) => f32_to_tf32_nearest,
        (false, Some(Rounding::Zero)) => f32_to_tf32_zero,
        _ => return Err("this rounding to .tf32 does not exist".to_string()),
    };
    Ok(Op::Lanes(map1(d, a, move |a: u32| {
        let bits = round(a);
        let (magnitude, negative) = (bits & 0x7fff_ffff, bits >> 31 == 1);
        match magnitude {
            0x7f80_0001.. => bits,
            _ if relu && negative => 0,
            0x7f80_0000 if satfinite => bits - 0x2000,
            _ => bits,
        }
    })))
}

/// `cvt.pack.sat.to.from{.b32} d, a, b{, c}`: `a` and `b` narrowed, side by side, with what `c` holds above them.
fn pack_integers(case: &mut Case) -> Lowered<Op> {
    let to = case.one_of(&[
        ("u16", (16, false)),
        ("s16", (16, true)),
        ("u8", (8, false)),
        ("s8", (8, true)),
        ("u4", (4, false)),
        ("s4", (4, true)),
        ("u2", (2, false)),
        ("s2", (2, true)),
    ]);
    let (bits, signed) = to.ok_or("the type of the result is missing")?;
    case.kind_is("s32")?;
    let more = bits < 16;
    if more {
        case.kind_is("b32")?;
    }
    case.finish(if more { 4 } else { 3 })?;
    let (d, [a, b]) = (case.target(0, Type::B32)?, case.sources(1, Type::S32)?);
    let c = if more { case.source(3, Type::B32)? } else { case.slots.constant(false, Constant::Value(0)) };
    let (low, high) = if signed { (-(1i32 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    let narrow = move |x: u32| (x as i32).clamp(low, high) as u32 & ((1 << bits) - 1);
    Ok(Op::Lanes(map3(d, [a, b, c], move |a: u32, b: u32, c: u32| {
        let above = if more { c << (2 * bits) } else { 0 };
        above | narrow(a) << bits | narrow(b)
    })))
}

/// Conversions whose result (or source) is two numbers in one register.
fn packed(case: &mut Case, rounding: Option<Rounding>, satfinite: bool, relu: bool) -> Lowered<Op> {
    let fp8 = |word: &str| match word {
        "e4m3x2" => Some(Fp8::E4m3),
        "e5m2x2" => Some(Fp8::E5m2),
        _ => None,
    };
    let words: Vec<&str> = case.modifiers().to_vec();
    let [to, from] = words[..] else { return Err("a conversion has two types".to_string()) };
    let rounding = rounding.ok_or("a rounding modifier is missing")?;
    case.flow.rule = Rule::Packed;
    let (first, second) = (fp8(to), fp8(from));
    for word in [to, from] {
        case.take(word);
    }
    match (first, second, to, from) {
        (None, None, "f16x2" | "bf16x2", "f32") => {
            case.finish(3)?;
            let half = if to == "f16x2" { Half::F16 } else { Half::Bf16 };
            let (d, sources) = (case.target(0, Type::B32)?, case.sources(1, Type::F32)?);
            let narrow = move |bits: u32| {
                let mut out = half.narrow(bits, rounding);
                if satfinite {
                    out = half.satfinite(out);
                }
                if relu { half.relu(out) } else { out }
            };
            if rounding == Rounding::Nearest && !satfinite && !relu {
                return Ok(Op::Lanes(map2(d, sources, move |a, b| pack(half.nearest(a), half.nearest(b)))));
            }
            Ok(Op::Lanes(map2(d, sources, move |a, b| pack(narrow(a), narrow(b)))))
        }
        (Some(to), None, _, "f32") if satfinite && rounding == Rounding::Nearest => {
            case.finish(3)?;
            let (d, sources) = (case.target(0, Type::B16)?, case.sources(1, Type::F32)?);
            Ok(Op::Lanes(map2(d, sources, move |a, b| u32::from(fp8::fp8x2_from_f32(to, a, b, relu)))))
        }
        (Some(to), None, _, "f16x2") if satfinite && rounding == Rounding::Nearest => {
            case.finish(2)?;
            let (d, a) = (case.target(0, Type::B16)?, case.source(1, Type::B32)?);
            Ok(Op::Lanes(map1(d, a, move |a| u32::from(fp8::fp8x2_from_f16x2(to, a, relu)))))
        }
        (None, Some(from), "f16x2", _) if rounding == Rounding::Nearest && !satfinite => {
            case.finish(2)?;
            let (d, a) = (case.target(0, Type::B32)?, case.source(1, Type::B16)?);
            Ok(Op::Lanes(map1(d, a, move |a: u32| fp8::f16x2_from_fp8x2(from, a as u16, relu))))
        }
        _ => Err(format!("conversion from {from} to {to} in this way is not supported")),
    }
}
