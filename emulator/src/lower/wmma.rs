//! PTX manual, "Warp Level Matrix Multiply-Accumulate Operations Using wmma": `wmma.load`, `wmma.mma`, `wmma.store`.
//!
//! The manual leaves open which lane holds which element. Here a fragment holds its elements in order (those of A by
//! rows, those of B by columns, so that neighbours along k share a register; those of C and D by rows), lane after lane.
//! Where a fragment has more room than elements (A and B of `.f16`), they are there several times.

use super::case::{Case, Lowered};
use super::flow::Cell;
use super::instruction::{Collective, Factors, Members, Op};
use super::matrix::{fragment, integers};
use super::slots::Constant;
use super::warp::sync;
use crate::Space;
use crate::exec::registers::Register;
use crate::numeric::format::Half;
use crate::numeric::product::{Factor, Floats};
use crate::parse::types::Type;

/// Which matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    A,
    B,
    /// C and D.
    Sum,
}

/// A matrix in registers.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    pub(crate) part: Part,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// The width of an element.
    pub(crate) bits: u32,
    /// The width of a register, and the slots.
    pub(crate) width: u32,
    pub(crate) slots: Vec<u32>,
}

impl Tile {
    /// Row and column of an element: the `at`-th of a register of a lane.
    pub(crate) fn position(&self, register: usize, lane: usize, at: usize) -> (usize, usize) {
        let per = (self.width / self.bits) as usize;
        let index = ((register * 32 + lane) * per + at) % (self.rows * self.columns);
        match self.part {
            Part::B => (index % self.rows, index / self.rows),
            _ => (index / self.columns, index % self.columns),
        }
    }
}

/// A tile and where it lies in memory.
pub(crate) struct Placed {
    pub(crate) tile: Tile,
    /// Whether a row lies in one piece, or a column.
    pub(crate) by_rows: bool,
    pub(crate) address: super::instruction::Address,
    pub(crate) space: Space,
    /// The slot with the elements from one row (or column) to the next.
    pub(crate) stride: u32,
}

/// `wmma.mma`
pub(crate) struct TileProduct {
    pub(crate) a: Tile,
    pub(crate) b: Tile,
    pub(crate) c: Tile,
    pub(crate) d: Tile,
    pub(crate) kind: Factors,
}

/// `m16n16k16`
type Shape = [usize; 3];

fn shape(word: &str) -> Option<Shape> {
    let (m, rest) = word.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some([m.parse().ok()?, n.parse().ok()?, k.parse().ok()?])
}

/// The width of an element and its register, where the type and the shape go together.
fn element(word: &str, part: Part, [m, n, k]: Shape) -> Lowered<(u32, Type)> {
    let large = matches!([m, n, k], [16, 16, 16] | [8, 32, 16] | [32, 8, 16]);
    let factor = part != Part::Sum;
    let found = match (word, [m, n, k]) {
        ("f16" | "bf16", _) if factor && large => Some((16, Type::B32)),
        ("s8" | "u8", _) if factor && large => Some((8, Type::B32)),
        ("tf32", [16, 16, 8]) if factor => Some((32, Type::B32)),
        ("s4" | "u4", [8, 8, 32]) if factor => Some((4, Type::B32)),
        ("b1", [8, 8, 128]) if factor => Some((1, Type::B32)),
        ("f64", [8, 8, 4]) => Some((64, Type::F64)),
        ("f16", _) if !factor && large => Some((16, Type::B32)),
        ("f32", _) if !factor && (large || [m, n, k] == [16, 16, 8]) => Some((32, Type::F32)),
        ("s32", _) if !factor && (large || matches!([m, n, k], [8, 8, 32 | 128])) => Some((32, Type::B32)),
        _ => None,
    };
    found.ok_or_else(|| format!("m{m}n{n}k{k} is not a shape of {word}"))
}

fn tile(case: &mut Case, index: usize, part: Part, word: &str, [m, n, k]: Shape, target: bool) -> Lowered<Tile> {
    let (bits, kind) = element(word, part, [m, n, k])?;
    let (rows, columns) = match part {
        Part::A => (m, k),
        Part::B => (k, n),
        Part::Sum => (m, n),
    };
    let slots = fragment(case, index, kind, target)?;
    let width = kind.bits();
    let count = rows * columns * bits as usize / width as usize / 32;
    // Those of .f16 have room for 16 elements in every lane.
    let wanted = if part != Part::Sum && word == "f16" { 8 } else { count };
    if slots.len() != wanted {
        return Err(format!("{} registers where the fragment has {wanted}", slots.len()));
    }
    Ok(Tile { part, rows, columns, bits, width, slots })
}

/// Whether a matrix lies in memory by rows.
fn layout(case: &mut Case) -> Lowered<bool> {
    case.one_of(&[("row", true), ("col", false)]).ok_or_else(|| "one of .row and .col is missing".to_string())
}

/// Lowers an instruction of this kind; `None` if it is none.
pub(crate) fn lower(case: &mut Case) -> Option<Lowered<Op>> {
    if case.name != "wmma" {
        return None;
    }
    let action = case.one_of(&[("load", 0), ("mma", 1), ("store", 2)]);
    Some(match action {
        Some(1) => product(case),
        Some(action) => placed(case, action == 0),
        None => Err("the action is missing".to_string()),
    })
}

/// `wmma.load.{a,b,c}.sync.aligned.layout.shape{.space}.type r, [p]{, stride}` and
/// `wmma.store.d.sync.aligned.layout.shape{.space}.type [p], r{, stride}`
fn placed(case: &mut Case, loads: bool) -> Lowered<Op> {
    let table: &[(&str, Part)] =
        if loads { &[("a", Part::A), ("b", Part::B), ("c", Part::Sum)] } else { &[("d", Part::Sum)] };
    let part = case.one_of(table).ok_or("the matrix is missing")?;
    sync(case)?;
    case.kind_is("aligned")?;
    let by_rows = layout(case)?;
    let shape = case.choose(shape).ok_or("the shape is missing")?;
    let space = case.choose(Space::named).unwrap_or(Space::Generic);
    if !matches!(space, Space::Global | Space::Shared | Space::Generic) {
        return Err(format!("there are no such matrices in {space} memory"));
    }
    let [word] = case.modifiers() else { return Err("one type is needed".to_string()) };
    let word = *word;
    case.take(word);
    let count = case.operands.len();
    case.finish(count.clamp(2, 3))?;
    let tile = tile(case, usize::from(!loads), part, word, shape, loads)?;
    if tile.bits < 8 && by_rows != (part == Part::A) {
        return Err("elements of less than a byte lie along k".to_string());
    }
    let address = case.address(usize::from(loads), space)?;
    let stride = match count {
        3 => {
            let stride = case.source(2, Type::U32)?;
            case.flow.addresses.push(Cell::Data(Register { slot: stride, bits: 32 }));
            stride
        }
        _ => {
            let length = if by_rows { tile.columns } else { tile.rows };
            case.slots.constant(false, Constant::Value(length as u64))
        }
    };
    let placed = Box::new(Placed { tile, by_rows, address, space, stride });
    Ok(Op::Warp(Members::All, if loads { Collective::LoadTile(placed) } else { Collective::StoreTile(placed) }))
}

/// `wmma.mma{.op.popc}.sync.aligned.alayout.blayout.shape{.rnd}.types{.satfinite} d, a, b, c`
fn product(case: &mut Case) -> Lowered<Op> {
    let popc = case.take("popc");
    let and = case.one_of(&[("xor", false), ("and", true)]);
    sync(case)?;
    case.kind_is("aligned")?;
    // How A and B lay in memory says nothing of how they lie in registers.
    layout(case)?;
    layout(case)?;
    let shape = case.choose(shape).ok_or("the shape is missing")?;
    let saturate = case.take("satfinite");
    let rounding = case.rounding();
    let words: Vec<&str> = case.modifiers().to_vec();
    words.iter().for_each(|word| {
        case.take(word);
    });
    let [d, a, b, c] = match words[..] {
        // Of .f16 only the sums are named.
        [d, c] => [d, "f16", "f16", c],
        [d, a, b, c] => [d, a, b, c],
        _ => return Err("two or four types are needed".to_string()),
    };
    case.finish(4)?;
    let same = |factor: Factor| Factors::Floats(Floats { factors: [factor; 2], half: [c == "f16", d == "f16"] });
    let kind = match (a, b) {
        ("f16", "f16") => same(Factor::Half(Half::F16)),
        ("bf16", "bf16") if [c, d] == ["f32"; 2] => same(Factor::Half(Half::Bf16)),
        ("tf32", "tf32") => same(Factor::Tf32),
        ("f64", "f64") => Factors::Doubles(rounding.unwrap_or_default()),
        ("b1", "b1") if popc => Factors::Bits { and: and.ok_or("one of .and and .xor is missing")? },
        _ => Factors::Integers(integers(a, b, saturate)?),
    };
    if rounding.is_some() && !matches!(kind, Factors::Doubles(_))
        || popc != matches!(kind, Factors::Bits { .. })
        || saturate && !matches!(kind, Factors::Integers(_))
    {
        return Err("this combination of modifiers does not exist".to_string());
    }
    let d = tile(case, 0, Part::Sum, d, shape, true)?;
    let (a, b) = (tile(case, 1, Part::A, a, shape, false)?, tile(case, 2, Part::B, b, shape, false)?);
    let c = tile(case, 3, Part::Sum, c, shape, false)?;
    Ok(Op::Warp(Members::All, Collective::TileProduct(Box::new(TileProduct { a, b, c, d, kind }))))
}
