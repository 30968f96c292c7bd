//! The common shapes of arithmetic instructions: one, two or three sources of one type, in 16, 32 or 64 bits.
//!
//! An instruction gives its formula for each width; 16-bit values travel in 32-bit slots.

use super::case::{Case, Lowered};
use super::instruction::Op;
use crate::exec::lanes::{map1, map2, map3};
use crate::parse::types::Type;

/// `d = f(a)`, all of one type.
pub(crate) fn one(
    case: &mut Case,
    kind: Type,
    f16: impl Fn(u16) -> u16 + Send + Sync + 'static,
    f32: impl Fn(u32) -> u32 + Send + Sync + 'static,
    f64: impl Fn(u64) -> u64 + Send + Sync + 'static,
) -> Lowered<Op> {
    case.finish(2)?;
    let (d, a) = (case.target(0, kind)?, case.source(1, kind)?);
    Ok(Op::Lanes(match kind.bits() {
        16 => map1(d, a, move |a: u32| u32::from(f16(a as u16))),
        32 => map1(d, a, f32),
        64 => map1(d, a, f64),
        _ => return Err(no_type(kind)),
    }))
}

/// `d = f(a, b)`, all of one type.
pub(crate) fn two(
    case: &mut Case,
    kind: Type,
    f16: impl Fn(u16, u16) -> u16 + Send + Sync + 'static,
    f32: impl Fn(u32, u32) -> u32 + Send + Sync + 'static,
    f64: impl Fn(u64, u64) -> u64 + Send + Sync + 'static,
) -> Lowered<Op> {
    case.finish(3)?;
    let (d, sources) = (case.target(0, kind)?, case.sources(1, kind)?);
    Ok(Op::Lanes(match kind.bits() {
        16 => map2(d, sources, move |a: u32, b: u32| u32::from(f16(a as u16, b as u16))),
        32 => map2(d, sources, f32),
        64 => map2(d, sources, f64),
        _ => return Err(no_type(kind)),
    }))
}

/// `d = f(a, b, c)`, all of one type.
pub(crate) fn three(
    case: &mut Case,
    kind: Type,
    f16: impl Fn(u16, u16, u16) -> u16 + Send + Sync + 'static,
    f32: impl Fn(u32, u32, u32) -> u32 + Send + Sync + 'static,
    f64: impl Fn(u64, u64, u64) -> u64 + Send + Sync + 'static,
) -> Lowered<Op> {
    case.finish(4)?;
    let (d, sources) = (case.target(0, kind)?, case.sources(1, kind)?);
    Ok(Op::Lanes(match kind.bits() {
        16 => map3(d, sources, move |a: u32, b: u32, c: u32| u32::from(f16(a as u16, b as u16, c as u16))),
        32 => map3(d, sources, f32),
        64 => map3(d, sources, f64),
        _ => return Err(no_type(kind)),
    }))
}

/// The complaint about a type that an instruction does not have.
pub(crate) fn no_type(kind: Type) -> String {
    format!("the type {kind:?} is not supported here").to_lowercase()
}
