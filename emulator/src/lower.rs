//! From statements to instructions, once per kernel: names become slots, labels positions, opcodes closures.
//!
//! Each file holds the instructions of one chapter of the PTX manual. An instruction takes the modifiers it knows out of
//! its opcode; one that is left over is an error, so that nothing is ever ignored in silence. So is an operand whose
//! register has another width than the instruction's type.

mod body;
mod case;
mod compare;
pub(crate) mod control;
mod convert;
pub(crate) mod definitions;
mod float;
pub(crate) mod flow;
mod half;
pub(crate) mod instruction;
mod integer;
mod logic;
mod matrix;
pub(crate) mod mbarrier;
mod memory;
mod moves;
mod refused;
mod shapes;
pub(crate) mod slots;
mod system;
mod unassigned;
mod video;
mod warp;
pub(crate) mod wmma;

use std::sync::OnceLock;

use crate::parse::ast::{Ast, Entry};
use crate::parse::types::Type;
use crate::{Error, Space};
use body::Body;
use case::{Case, Lowered};
use definitions::Definitions;
use flow::{Cell, Flow};
use instruction::{Instruction, Op};
use slots::{Constant, Name, Slots, Symbol};

/// A kernel that is ready to run.
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Instruction>,
    pub(crate) params: Vec<Param>,
    /// How many slots each register file has.
    pub(crate) narrow: usize,
    pub(crate) wide: usize,
    pub(crate) predicates: usize,
    /// The slots that hold constants: whether wide, which, what.
    pub(crate) constants: Vec<(bool, u32, Constant)>,
    /// Bytes of static shared memory, and where dynamic shared memory begins.
    pub(crate) shared_bytes: u64,
    pub(crate) dynamic_start: u64,
    pub(crate) local_bytes: u64,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) files: Vec<(u32, String)>,
    /// Some instruction reads or changes global memory in a way that depends on the order of blocks: atomics, and strong
    /// loads, which may wait for another block.
    pub(crate) needs_order: bool,
    definitions: OnceLock<Definitions>,
    unassigned: OnceLock<Option<Vec<(Cell, usize)>>>,
}

impl Kernel {
    /// Where each register gets its value; found when somebody asks.
    pub(crate) fn definitions(&self) -> &Definitions {
        self.definitions.get_or_init(|| Definitions::of(&self.code))
    }

    /// The registers that some path reads before it has written them, and where; found when somebody asks.
    /// `None` if that would take too long.
    pub(crate) fn unassigned(&self) -> Option<&[(Cell, usize)]> {
        let search = || unassigned::unassigned(&self.code, self.narrow, self.wide, self.predicates);
        self.unassigned.get_or_init(search).as_deref()
    }
}

/// A parameter of a kernel and its place in the parameter memory.
pub(crate) struct Param {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// What a pointer to a function holds; no memory is there.
pub(crate) fn function_address(ast: &Ast, name: &str) -> Option<u64> {
    const FUNCTIONS: u64 = 1 << 59;
    let index = ast.functions.iter().position(|function| function.name == name)?;
    Some(FUNCTIONS + 16 * index as u64)
}

/// Lowers one kernel of a module.
pub(crate) fn lower(ast: &Ast, entry: &Entry) -> Result<Kernel, Error> {
    let mut slots = Slots::new();
    let mut params = vec![];
    let mut layout = slots::Layout::default();
    for param in &entry.params {
        let bytes = param.bytes.unwrap_or(0);
        let offset = layout.place(bytes, param.align);
        params.push(Param { offset, bytes });
        let symbol = Symbol { space: Space::Param, address: Constant::Value(offset) };
        slots.define(param.name.clone(), Name::Variable(symbol));
    }
    let taken = body::taken(ast);
    let mut body = Body { ast, kernel: &entry.name, slots, code: vec![], calls: vec![], taken };
    body.items(&entry.body, None)?;
    let Body { slots, mut code, .. } = body;
    // Running off the end of the body is the same as `ret`.
    code.push(Instruction {
        op: Op::Exit,
        guard: None,
        opcode: "ret".into(),
        line: 0,
        source: None,
        flow: Box::new(Flow::default()),
    });
    let dynamic_start = slots.shared.bytes.next_multiple_of(u64::from(slots.dynamic_align.unwrap_or(1)));
    let needs_order = code.iter().any(|instruction| match &instruction.op {
        Op::Atomic(atomic) => atomic.space != Space::Shared,
        Op::Load(load) => load.polls,
        _ => false,
    });
    Ok(Kernel {
        name: entry.name.clone(),
        code,
        params,
        narrow: slots.narrow as usize,
        wide: slots.wide as usize,
        predicates: slots.predicates as usize,
        constants: slots.constants(),
        shared_bytes: slots.shared.bytes,
        dynamic_start,
        local_bytes: slots.local.bytes,
        max_threads: entry.max_threads,
        required_threads: entry.required_threads,
        files: ast.files.clone(),
        needs_order,
        definitions: OnceLock::new(),
        unassigned: OnceLock::new(),
    })
}

/// Lowers the instructions of one chapter; `None` for those of another.
type Chapter = fn(&mut Case) -> Option<Lowered<Op>>;

/// Finds the chapter that knows the instruction.
fn operation(case: &mut Case) -> Lowered<Op> {
    const CHAPTERS: [Chapter; 9] = [
        control::lower,
        memory::lower,
        moves::lower,
        compare::lower,
        logic::lower,
        warp::lower,
        matrix::lower,
        wmma::lower,
        mbarrier::lower,
    ];
    if let Some(lowered) = video::lower(case) {
        return lowered;
    }
    if let Some(reason) = refused::reason(case.opcode) {
        return Err(reason);
    }
    if let Some(lowered) = CHAPTERS.iter().find_map(|chapter| chapter(case)) {
        return lowered;
    }
    if case.name == "cvt" {
        return convert::lower(case);
    }
    // What is left is arithmetic, and its type decides the chapter.
    let Ok(kind) = case.kind() else {
        return Err(format!("the instruction {} is not supported", case.name));
    };
    let lowered = match kind {
        Type::F32 | Type::F64 => float::lower(case, kind),
        _ if half::format(kind).is_some() => half::lower(case, kind),
        _ if integer::is_integer(kind) || matches!(kind, Type::U16x2 | Type::S16x2) => integer::lower(case, kind),
        _ => None,
    };
    lowered
        .unwrap_or_else(|| Err(format!("the instruction {} is not supported with .{kind:?}", case.name).to_lowercase()))
}
