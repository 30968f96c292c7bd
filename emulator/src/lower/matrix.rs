//! PTX manual, "Warp Level Matrix Multiply-Accumulate Instructions": `mma`, `ldmatrix`, `stmatrix`, `movmatrix`.

use super::case::{Case, Lowered};
use super::instruction::{Collective, Factors, Members, Op, Product};
use super::warp::{exactly, sync};
use crate::Space;
use crate::exec::registers::Register;
use crate::numeric::format::Half;
use crate::numeric::fp8::Fp8;
use crate::numeric::fragment::LANES;
use crate::numeric::product::{Factor, Floats, Integers, Shape};
use crate::parse::ast::Operand;
use crate::parse::types::Type;

/// Lowers an instruction of this chapter; `None` if it has no such instruction.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    Some(match case.name {
        "ldmatrix" => load(case),
        "stmatrix" => store(case),
        "movmatrix" => transpose(case),
        "mma" => product(case),
        _ => return None,
    })
}

/// The registers of a fragment, each of the type's width.
pub(super) fn fragment(case: &mut Case, index: usize, kind: Type, target: bool) -> Lowered<Vec<u32>> {
    let parts = match case.operand(index)? {
        Operand::Vector(parts) => parts.as_slice(),
        single => std::slice::from_ref(single),
    };
    let mut slots = vec![];
    for part in parts {
        let register: Register = if target { case.register(part, kind.bits())? } else { case.value(part, kind)? };
        slots.push(exactly(register, kind)?);
    }
    Ok(slots)
}

/// `.sync.aligned.m8n8.num{.trans}{.shared}.b16`: how many matrices, whether transposed, and the space.
fn matrices(case: &mut Case) -> Lowered<(usize, bool, Space)> {
    sync(case)?;
    case.kind_is("aligned")?;
    case.kind_is("m8n8")?;
    let count = case.one_of(&[("x1", 1), ("x2", 2), ("x4", 4)]).ok_or("the number of matrices is missing")?;
    let transposed = case.take("trans");
    let space = case.choose(Space::named).unwrap_or(Space::Generic);
    case.kind_is("b16")?;
    case.finish(2)?;
    if !matches!(space, Space::Shared | Space::Generic) {
        return Err(format!("{} works on shared memory", case.name));
    }
    Ok((count, transposed, space))
}

fn as_many(slots: Vec<u32>, count: usize) -> Lowered<Vec<u32>> {
    if slots.len() == count { Ok(slots) } else { Err(format!("{} registers for {count} matrices", slots.len())) }
}

/// `ldmatrix.sync.aligned.m8n8.num{.trans}{.shared}.b16 {d, ...}, [p]`
fn load(case: &mut Case) -> Lowered<Op> {
    let (count, transposed, space) = matrices(case)?;
    let d = as_many(fragment(case, 0, Type::B32, true)?, count)?;
    let address = case.address(1, space)?;
    Ok(Op::Warp(Members::All, Collective::LoadMatrix { d, address, space, transposed }))
}

/// `stmatrix.sync.aligned.m8n8.num{.trans}{.shared}.b16 [p], {r, ...}`
fn store(case: &mut Case) -> Lowered<Op> {
    let (count, transposed, space) = matrices(case)?;
    let address = case.address(0, space)?;
    let sources = as_many(fragment(case, 1, Type::B32, false)?, count)?;
    Ok(Op::Warp(Members::All, Collective::StoreMatrix { sources, address, space, transposed }))
}

/// `movmatrix.sync.aligned.m8n8.trans.b16 d, a`
fn transpose(case: &mut Case) -> Lowered<Op> {
    sync(case)?;
    for word in ["aligned", "m8n8", "trans", "b16"] {
        case.kind_is(word)?;
    }
    case.finish(2)?;
    let (d, a) = (case.target(0, Type::B32)?, case.source(1, Type::B32)?);
    Ok(Op::Warp(Members::All, Collective::MoveMatrix { d, a }))
}

/// `mma.sync.aligned.shape.row.col{.satfinite}.dtype.atype.btype.ctype{.bitop.popc}{.rnd} d, a, b, c`
fn product(case: &mut Case) -> Lowered<Op> {
    if case.modifiers().iter().any(|word| word.starts_with("sp")) {
        return Err("sparse products are not supported".to_string());
    }
    if case.modifiers().iter().any(|word| word.starts_with("kind") || *word == "block_scale") {
        return Err("products with scales, of sm_100 and later, are not supported".to_string());
    }
    sync(case)?;
    case.kind_is("aligned")?;
    let shape = case.choose(shape).ok_or("the shape is missing, or not one of sm_80 to sm_90")?;
    case.kind_is("row")?;
    case.kind_is("col")?;
    let saturate = case.take("satfinite");
    let mut kinds = vec![];
    for word in case.modifiers().iter().take(4) {
        kinds.push(*word);
    }
    kinds.iter().for_each(|word| {
        case.take(word);
    });
    let [d, a, b, c] = kinds[..] else { return Err("four types are needed".to_string()) };
    let popc = case.take("popc");
    let operation = case.one_of(&[("xor", false), ("and", true)]);
    let rounding = if d == "f64" { case.rounding() } else { None };
    case.finish(4)?;
    let factors = match (d, a, b, c) {
        ("f64", "f64", "f64", "f64") => Factors::Doubles(rounding.unwrap_or_default()),
        ("s32", "b1", "b1", "s32") if popc => {
            Factors::Bits { and: operation.ok_or("one of .and and .xor is missing")? }
        }
        ("s32", _, _, "s32") => Factors::Integers(integers(a, b, saturate)?),
        _ => floats(shape, [d, a, b, c])?,
    };
    if saturate && !matches!(factors, Factors::Integers(_)) || popc && !matches!(factors, Factors::Bits { .. }) {
        return Err("this combination of modifiers does not exist".to_string());
    }
    // The elements of A, B, C and D in a register, and the shapes that there are.
    let (factor, [c_width, d_width]): (usize, [usize; 2]) = match factors {
        Factors::Halves(_) => (16, [32, 32]),
        Factors::Floats(Floats { factors, half }) => {
            (factors[0].bits() as usize, half.map(|half| if half { 16 } else { 32 }))
        }
        Factors::Integers(Integers { bits, .. }) => (bits as usize, [32; 2]),
        Factors::Bits { .. } => (1, [32; 2]),
        Factors::Doubles(_) => (32, [32; 2]),
    };
    let exists = match (factors, shape.m, shape.k) {
        (Factors::Halves(_), 16, 8 | 16) => true,
        (Factors::Floats(Floats { factors: [Factor::Half(_), _], .. }), 16, 8 | 16) => true,
        (Factors::Floats(Floats { factors: [Factor::Tf32, _], .. }), 16, 4 | 8) => true,
        (Factors::Floats(Floats { factors: [Factor::Fp8(_), _], .. }), 16, 16 | 32) => true,
        (Factors::Integers(Integers { bits: 8, .. }), 8, 16) => true,
        (Factors::Integers(Integers { bits: 8, .. }), 16, 16 | 32) => true,
        (Factors::Integers(_), 8, 32) | (Factors::Integers(_), 16, 32 | 64) => factor == 4,
        (Factors::Bits { .. }, 8, 128) | (Factors::Bits { .. }, 16, 128 | 256) => true,
        (Factors::Doubles(_), 8, 4) | (Factors::Doubles(_), 16, 4 | 8 | 16) => true,
        _ => false,
    };
    if !exists {
        return Err(format!("m{}n8k{} is not a shape of these types here", shape.m, shape.k));
    }
    let wide = matches!(factors, Factors::Doubles(_));
    let (factor_kind, sum_kind) = if wide { (Type::F64, Type::F64) } else { (Type::B32, Type::B32) };
    let sum_kind = |width: usize| if wide || width == 16 { sum_kind } else { Type::F32 };
    let product = Product {
        d: fragment(case, 0, sum_kind(d_width), true)?,
        a: fragment(case, 1, factor_kind, false)?,
        b: fragment(case, 2, factor_kind, false)?,
        c: fragment(
            case,
            3,
            if matches!(factors, Factors::Integers(_) | Factors::Bits { .. }) { Type::B32 } else { sum_kind(c_width) },
            false,
        )?,
        shape,
        kind: factors,
    };
    let lengths = [product.d.len(), product.a.len(), product.b.len(), product.c.len()];
    let sums = |width: usize| shape.m * 8 * width / 32 / LANES;
    if lengths
        != [sums(d_width), shape.m * shape.k * factor / 32 / LANES, shape.k * 8 * factor / 32 / LANES, sums(c_width)]
    {
        return Err("the fragments have the wrong number of registers".to_string());
    }
    Ok(Op::Warp(Members::All, Collective::MatrixProduct(Box::new(product))))
}

/// `m16n8k16`
fn shape(word: &str) -> Option<Shape> {
    let (m, k) = word.strip_prefix('m')?.split_once("n8k")?;
    let (m, k) = (m.parse().ok()?, k.parse().ok()?);
    matches!(m, 8 | 16).then_some(Shape { m, k })
}

fn floats(shape: Shape, [d, a, b, c]: [&str; 4]) -> Lowered<Factors> {
    let factor = |word: &str| {
        Some(match word {
            "f16" => Factor::Half(Half::F16),
            "bf16" => Factor::Half(Half::Bf16),
            "tf32" => Factor::Tf32,
            "e4m3" => Factor::Fp8(Fp8::E4m3),
            "e5m2" => Factor::Fp8(Fp8::E5m2),
            _ => return None,
        })
    };
    let half = |word: &str| match word {
        "f32" => Some(false),
        "f16" => Some(true),
        _ => None,
    };
    let unknown = || format!("products of {a} and {b}, summed in {d} and {c}, are not supported");
    let (Some(a), Some(b), Some(c_half), Some(d_half)) = (factor(a), factor(b), half(c), half(d)) else {
        return Err(unknown());
    };
    let mixed = a != b && !matches!((a, b), (Factor::Fp8(_), Factor::Fp8(_)));
    let narrow = (c_half || d_half) && !matches!(a, Factor::Half(Half::F16) | Factor::Fp8(_));
    if mixed || narrow {
        return Err(unknown());
    }
    if let (Factor::Half(half), false, false, 16) = (a, c_half, d_half, shape.m) {
        return Ok(Factors::Halves(half));
    }
    Ok(Factors::Floats(Floats { factors: [a, b], half: [c_half, d_half] }))
}

pub(super) fn integers(a: &str, b: &str, saturate: bool) -> Lowered<Integers> {
    let number = |word: &str| {
        Some(match word {
            "u8" => (8, false),
            "s8" => (8, true),
            "u4" => (4, false),
            "s4" => (4, true),
            _ => return None,
        })
    };
    match (number(a), number(b)) {
        (Some((bits, first)), Some((other, second))) if bits == other => {
            Ok(Integers { bits, signed: [first, second], saturate })
        }
        _ => Err(format!("products of {a} and {b} are not supported")),
    }
}
