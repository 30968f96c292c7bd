//! PTX manual, "Comparison and Selection Instructions": `setp`, `set`, `selp`, `slct`.

use super::case::{Case, Lowered};
use super::flow::Rule;
use super::half::format;
use super::instruction::Op;
use super::shapes::no_type;
use super::warp::named;
use crate::exec::lanes::{Test, map3, predicate, select, test2};
use crate::exec::registers::{LANES, Pred, Registers, lanes};
use crate::numeric::compare::{Comparison, compare_f32, compare_f64};
use crate::numeric::format::Half;
use crate::numeric::half_ops;
use crate::parse::ast::Operand;
use crate::parse::types::Type;

/// Lowers an instruction of this chapter; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    Some(match case.name {
        "setp" => setp(case),
        "set" => set(case),
        "selp" => selp(case),
        "slct" => slct(case),
        _ => return None,
    })
}

/// A comparison operator, and whether it is one of `lo ls hi hs`, which compare without sign.
fn operator(case: &mut Case) -> Lowered<(Comparison, bool)> {
    use Comparison::*;
    let found = case.one_of(&[
        ("eq", (Eq, false)),
        ("ne", (Ne, false)),
        ("lt", (Lt, false)),
        ("le", (Le, false)),
        ("gt", (Gt, false)),
        ("ge", (Ge, false)),
        ("lo", (Lt, true)),
        ("ls", (Le, true)),
        ("hi", (Gt, true)),
        ("hs", (Ge, true)),
        ("equ", (Equ, false)),
        ("neu", (Neu, false)),
        ("ltu", (Ltu, false)),
        ("leu", (Leu, false)),
        ("gtu", (Gtu, false)),
        ("geu", (Geu, false)),
        ("num", (Num, false)),
        ("nan", (Nan, false)),
    ]);
    found.ok_or_else(|| "the comparison operator is missing".to_string())
}

/// What is done with the comparison and the third source.
type Combine = fn(u32, u32) -> u32;

fn combination(case: &mut Case) -> Option<Combine> {
    const TABLE: [(&str, Combine); 3] = [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
    case.one_of(&TABLE)
}

/// Integers of one width and sign, each operator a loop of its own.
macro_rules! integers {
    ($sources:expr, $bits:ty, $number:ty, $operator:expr) => {
        match $operator {
            Comparison::Eq => test2($sources, |a: $bits, b: $bits| a == b),
            Comparison::Ne => test2($sources, |a: $bits, b: $bits| a != b),
            Comparison::Lt => test2($sources, |a: $bits, b: $bits| (a as $number) < b as $number),
            Comparison::Le => test2($sources, |a: $bits, b: $bits| a as $number <= b as $number),
            Comparison::Gt => test2($sources, |a: $bits, b: $bits| a as $number > b as $number),
            Comparison::Ge => test2($sources, |a: $bits, b: $bits| a as $number >= b as $number),
            _ => return Err("this operator is for floating-point numbers".to_string()),
        }
    };
}

/// The comparison of operands `first` and `first + 1`.
fn test(case: &mut Case, first: usize, kind: Type, operator: (Comparison, bool), ftz: bool) -> Lowered<Test> {
    let (operator, unsigned) = operator;
    let sources: [u32; 2] = case.sources(first, kind)?;
    let float = format(kind).is_some() || matches!(kind, Type::F32 | Type::F64);
    if ftz && !matches!(kind, Type::F32 | Type::F16) {
        return Err("the modifier .ftz is not supported here".to_string());
    }
    if unsigned && (float || kind.is_signed()) {
        return Err("this operator is for unsigned integers".to_string());
    }
    if matches!(kind, Type::B16 | Type::B32 | Type::B64) && !matches!(operator, Comparison::Eq | Comparison::Ne) {
        return Err("bits can be compared by .eq and .ne only".to_string());
    }
    Ok(match kind {
        Type::U16 | Type::B16 | Type::U32 | Type::B32 => integers!(sources, u32, u32, operator),
        // A 16-bit number lies zero-extended in its slot.
        Type::S16 => integers!(sources, u32, i16, operator),
        Type::S32 => integers!(sources, u32, i32, operator),
        Type::U64 | Type::B64 => integers!(sources, u64, u64, operator),
        Type::S64 => integers!(sources, u64, i64, operator),
        Type::F32 => test2(sources, move |a, b| compare_f32(operator, a, b, ftz)),
        Type::F64 => test2(sources, move |a, b| compare_f64(operator, a, b)),
        _ => match format(kind) {
            Some((half, false)) => {
                test2(sources, move |a: u32, b: u32| half_ops::compare(half, operator, a as u16, b as u16, ftz))
            }
            _ => return Err(no_type(kind)),
        },
    })
}

/// `setp.op{.bool}{.ftz}.type p{|q}, a, b{, c}`
fn setp(case: &mut Case) -> Lowered<Op> {
    let operator = operator(case)?;
    let combine = combination(case);
    let ftz = case.take("ftz");
    let kind = case.kind()?;
    case.finish(if combine.is_some() { 4 } else { 3 })?;
    let third = if combine.is_some() { Some(case.condition(3)?) } else { None };
    if let (Some(by), Some(combine)) = (third, combine)
        && combine(1, 1) == 1
    {
        // Not the exclusive "or": one value of the predicate decides.
        case.flow.rule = Rule::Gate { by, and: combine(1, 0) == 0 };
    }
    if let (Some((half, true)), Operand::Pair(p, q)) = (format(kind), case.operand(0)?) {
        // Two numbers in a word: `p` is for the lower one, `q` for the upper one.
        let (p, q) = (case.predicate(&named(p))?, case.predicate(&named(q))?);
        let sources: [u32; 2] = case.sources(1, kind)?;
        let [low, high] = halves(half, operator, ftz, sources)?;
        return Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| {
            let c = third.map_or(0, |pred| registers.test(pred));
            let join = |bits| combine.map_or(bits, |combine| combine(bits, c));
            let (low, high) = (low(registers), high(registers));
            registers.set_predicate(p, join(low), mask);
            registers.set_predicate(q, join(high), mask);
        })));
    }
    let (p, q) = match case.operand(0)? {
        Operand::Pair(p, q) => (case.predicate(&Operand::Name(p.clone()))?, Some(case.predicate(&named(q))?)),
        single => (case.predicate(single)?, None),
    };
    let test = test(case, 1, kind, operator, ftz)?;
    if combine.is_none() && q.is_none() {
        return Ok(Op::Lanes(predicate(p, test)));
    }
    Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| {
        let (bits, c) = (test(registers), third.map_or(0, |pred| registers.test(pred)));
        let join = |bits| combine.map_or(bits, |combine| combine(bits, c));
        registers.set_predicate(p, join(bits), mask);
        if let Some(q) = q {
            registers.set_predicate(q, join(!bits), mask);
        }
    })))
}

/// The comparisons of the lower and of the upper half of words.
fn halves(half: Half, (operator, unsigned): (Comparison, bool), ftz: bool, sources: [u32; 2]) -> Lowered<[Test; 2]> {
    if unsigned {
        return Err("this operator is for unsigned integers".to_string());
    }
    let part = |shift: u32| {
        test2(sources, move |a: u32, b: u32| {
            half_ops::compare(half, operator, (a >> shift) as u16, (b >> shift) as u16, ftz)
        })
    };
    Ok([part(0), part(16)])
}

/// `set.op{.bool}{.ftz}.dtype.stype d, a, b{, c}`: all ones, or 1.0, where it holds. For two numbers in a word each half
/// of the result says so of one.
fn set(case: &mut Case) -> Lowered<Op> {
    let operator = operator(case)?;
    let combine = combination(case);
    let ftz = case.take("ftz");
    let (result, kind) = (case.kind()?, case.kind()?);
    case.finish(if combine.is_some() { 4 } else { 3 })?;
    let packed = format(kind).is_some_and(|(_, packed)| packed);
    let one = match (result, packed) {
        (Type::U32 | Type::S32, true) => 0xffff,
        (Type::F16x2, true) => 0x3c00,
        (Type::Bf16x2, true) => 0x3f80,
        (Type::U32 | Type::S32, false) => u32::MAX,
        (Type::U16 | Type::S16, false) if format(kind).is_some() => 0xffff,
        (Type::F16, false) => 0x3c00,
        (Type::Bf16, false) => 0x3f80,
        (Type::F32, false) => 1.0f32.to_bits(),
        _ => return Err(no_type(result)),
    };
    let d = case.target(0, result)?;
    let third: Option<Pred> = if combine.is_some() { Some(case.condition(3)?) } else { None };
    let tests = match format(kind) {
        Some((half, true)) => halves(half, operator, ftz, case.sources(1, kind)?)?.into_iter().collect(),
        _ => vec![test(case, 1, kind, operator, ftz)?],
    };
    Ok(Op::Lanes(Box::new(move |registers: &mut Registers, mask| {
        let c = third.map_or(0, |pred| registers.test(pred));
        let mut out = [0u32; LANES];
        for (part, test) in tests.iter().enumerate() {
            let bits = test(registers);
            let bits = combine.map_or(bits, |combine| combine(bits, c));
            lanes(mask & bits).for_each(|lane| out[lane] |= one << (16 * part));
        }
        registers.put(d, &out, mask);
    })))
}

/// `selp.type d, a, b, p`
fn selp(case: &mut Case) -> Lowered<Op> {
    let kind = case.kind()?;
    case.finish(4)?;
    let (d, sources, p) = (case.target(0, kind)?, case.sources(1, kind)?, case.condition(3)?);
    Ok(Op::Lanes(match kind.bits() {
        16 | 32 => select::<u32>(d, sources, p),
        64 => select::<u64>(d, sources, p),
        _ => return Err(no_type(kind)),
    }))
}

/// `slct{.ftz}.dtype.ctype d, a, b, c`: `a` where `c` is not negative.
fn slct(case: &mut Case) -> Lowered<Op> {
    let ftz = case.take("ftz");
    let (kind, control) = (case.kind()?, case.kind()?);
    case.finish(4)?;
    let float = match control {
        Type::S32 if !ftz => false,
        Type::F32 => true,
        _ => return Err(no_type(control)),
    };
    let (d, [a, b], c) = (case.target(0, kind)?, case.sources(1, kind)?, case.source(3, control)?);
    // NaN is not greater or equal to zero, and minus zero is.
    let first = move |c: u32| {
        if float { compare_f32(Comparison::Ge, c, 0, ftz) } else { c as i32 >= 0 }
    };
    Ok(Op::Lanes(match kind.bits() {
        16 | 32 => map3(d, [a, b, c], move |a: u32, b: u32, c| if first(c) { a } else { b }),
        64 => map3(d, [a, b, c], move |a: u64, b: u64, c| if first(c) { a } else { b }),
        _ => return Err(no_type(kind)),
    }))
}
