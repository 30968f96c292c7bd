//! Several small integers in a word: the SIMD video instructions of the PTX manual, and `.u16x2` and `.s16x2`.

use super::case::{Case, Lowered};
use super::instruction::Op;
use super::shapes::two;
use crate::exec::lanes::map3;
use crate::numeric::integer::{self, Video, VideoMode};
use crate::parse::types::Type;

/// `add`, `min` and `max` of two 16-bit numbers in a word.
pub(super) fn pairs(case: &mut Case, kind: Type) -> Option<Lowered<Op>> {
    let signed = kind == Type::S16x2;
    let f: fn(u16, u16) -> u16 = match (case.name, signed) {
        ("add", _) => u16::wrapping_add,
        ("min", false) => Ord::min,
        ("max", false) => Ord::max,
        ("min", true) => |a, b| (a as i16).min(b as i16) as u16,
        ("max", true) => |a, b| (a as i16).max(b as i16) as u16,
        _ => return None,
    };
    let relu = signed && case.name != "add" && case.take("relu");
    let clamp = move |x: u16| if relu { (x as i16).max(0) as u16 } else { x };
    let pair = move |a: u32, b: u32| {
        let low = clamp(f(a as u16, b as u16));
        u32::from(low) | u32::from(clamp(f((a >> 16) as u16, (b >> 16) as u16))) << 16
    };
    Some(two(case, kind, |a, _| a, pair, |a, _| a))
}

/// `v{add,sub,avrg,absdiff,min,max}{2,4}.dtype.atype.btype{.sat}{.add} d, a, b, c`; `None` for another instruction.
pub(super) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    let (name, bits) = match case.name.strip_suffix('4') {
        Some(name) => (name, 8),
        None => (case.name.strip_suffix('2')?, 16),
    };
    let operation = match name {
        "vadd" => Video::Add,
        "vsub" => Video::Subtract,
        "vavrg" => Video::Average,
        "vabsdiff" => Video::Difference,
        "vmin" => Video::Min,
        "vmax" => Video::Max,
        _ => return None,
    };
    let simd = |case: &mut Case| {
        let kinds = [case.kind()?, case.kind()?, case.kind()?];
        let (saturate, accumulate) = (case.take("sat"), case.take("add"));
        case.finish(4)?;
        if kinds.iter().any(|kind| !matches!(kind, Type::U32 | Type::S32)) || saturate && accumulate {
            return Err("this combination of modifiers does not exist".to_string());
        }
        let mode = VideoMode { bits, signed: kinds.map(Type::is_signed), saturate, accumulate };
        let (d, sources) = (case.target(0, Type::B32)?, case.sources(1, Type::B32)?);
        Ok(Op::Lanes(map3(d, sources, move |a, b, c| integer::video(operation, mode, a, b, c))))
    };
    Some(simd(case))
}
