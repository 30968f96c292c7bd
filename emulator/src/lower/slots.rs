//! Names to slots: registers, constants, special registers and the addresses of variables.

use std::collections::HashMap;

use crate::Space;
use crate::exec::registers::{CARRY, Register};
use crate::parse::ast::Variable;
use crate::parse::types::Type;

/// What a name in a kernel stands for.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    Register(Register),
    Predicate(u32),
    Variable(Symbol),
    /// The position of the instruction behind a label.
    Label(usize),
    /// The labels of a `.branchtargets`.
    Targets(Vec<String>),
}

/// A variable and the constant that is its address in its own space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    pub(crate) space: Space,
    pub(crate) address: Constant,
}

/// What a constant slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Constant {
    Value(u64),
    /// So many bytes behind the address of a variable of the module; known once the module is loaded.
    Global(usize, i64),
    /// So many bytes behind the beginning of dynamic shared memory; known once all static variables are laid out.
    Dynamic(i64),
    Special(Special),
}

impl Constant {
    /// The address so many bytes further on; `None` for what is no address.
    pub(crate) fn plus(self, bytes: i64) -> Option<Self> {
        Some(match self {
            Self::Value(address) => Self::Value(address.wrapping_add_signed(bytes)),
            Self::Global(index, offset) => Self::Global(index, offset.wrapping_add(bytes)),
            Self::Dynamic(offset) => Self::Dynamic(offset.wrapping_add(bytes)),
            Self::Special(_) => return None,
        })
    }
}

/// A read-only register that is the same for a whole launch, block, warp or lane (PTX manual, "Special Registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    WarpCount,
    LaneMask(Mask),
    DynamicShared,
    TotalShared,
    /// `%smid` and `%gridid`: all blocks run on multiprocessor 0. A block without a cluster is one of its own, so its
    /// place in it is zero.
    Zero,
    /// `%nsmid`, and the size of such a cluster.
    One,
    /// `%envreg1` and `%envreg2`: the upper and the lower half of the address of what the blocks of a cooperative grid
    /// meet at; zero otherwise.
    GridWorkspace {
        upper: bool,
    },
}

/// `%lanemask_eq` and its relatives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Mask {
    Equal,
    LessEqual,
    Less,
    GreaterEqual,
    Greater,
}

impl Special {
    /// The special register of this name, if it is one of the constant ones.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let axis = |letter: &str| ["x", "y", "z"].iter().position(|axis| *axis == letter);
        if let Some((stem, letter)) = name.split_once('.') {
            let axis = axis(letter)?;
            return Some(match stem {
                "%tid" => Self::Tid(axis),
                "%ntid" => Self::Ntid(axis),
                "%ctaid" | "%clusterid" => Self::Ctaid(axis),
                "%nctaid" | "%nclusterid" => Self::Nctaid(axis),
                "%cluster_ctaid" => Self::Zero,
                "%cluster_nctaid" => Self::One,
                _ => return None,
            });
        }
        Some(match name {
            "%laneid" => Self::LaneId,
            "%warpid" => Self::WarpId,
            "%nwarpid" => Self::WarpCount,
            "%lanemask_eq" => Self::LaneMask(Mask::Equal),
            "%lanemask_le" => Self::LaneMask(Mask::LessEqual),
            "%lanemask_lt" => Self::LaneMask(Mask::Less),
            "%lanemask_ge" => Self::LaneMask(Mask::GreaterEqual),
            "%lanemask_gt" => Self::LaneMask(Mask::Greater),
            "%smid" | "%gridid" | "%cluster_ctarank" => Self::Zero,
            "%nsmid" | "%cluster_nctarank" => Self::One,
            "%envreg1" => Self::GridWorkspace { upper: true },
            "%envreg2" => Self::GridWorkspace { upper: false },
            "%dynamic_smem_size" => Self::DynamicShared,
            "%total_smem_size" => Self::TotalShared,
            _ => return None,
        })
    }
}

/// Gives out slots and remembers names.
#[derive(Default)]
pub(crate) struct Slots {
    /// The innermost scope is the last.
    scopes: Vec<HashMap<String, Name>>,
    constants: HashMap<(bool, Constant), u32>,
    pub(crate) narrow: u32,
    pub(crate) wide: u32,
    pub(crate) predicates: u32,
    pub(crate) shared: Layout,
    pub(crate) local: Layout,
    /// The largest alignment that an `.extern .shared` array wants, if the kernel uses one.
    pub(crate) dynamic_align: Option<u32>,
}

/// Variables one behind the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    pub(crate) bytes: u64,
}

impl Layout {
    /// Room for one more; its offset.
    pub(crate) fn place(&mut self, bytes: u64, align: u32) -> u64 {
        // Far more than any launch allows, and far from an overflow.
        const END: u64 = 1 << 48;
        let at = self.bytes.next_multiple_of(u64::from(align));
        self.bytes = at.saturating_add(bytes).min(END);
        at
    }
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self { scopes: vec![HashMap::new()], predicates: CARRY + 1, ..Self::default() }
    }

    pub(crate) fn open(&mut self) {
        self.scopes.push(HashMap::new());
    }

    pub(crate) fn close(&mut self) {
        self.scopes.pop();
    }

    pub(crate) fn define(&mut self, name: String, meaning: Name) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, meaning);
        }
    }

    /// Defines a name for the whole kernel.
    pub(crate) fn define_outermost(&mut self, name: String, meaning: Name) {
        if let Some(scope) = self.scopes.first_mut() {
            scope.insert(name, meaning);
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<Name> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).cloned()
    }

    /// A new register that nothing names.
    pub(crate) fn fresh(&mut self, bits: u32) -> Register {
        let file = if bits > 32 { &mut self.wide } else { &mut self.narrow };
        *file += 1;
        Register { slot: *file - 1, bits }
    }

    pub(crate) fn fresh_predicate(&mut self) -> u32 {
        self.predicates += 1;
        self.predicates - 1
    }

    /// Declares `.reg`.
    pub(crate) fn register(&mut self, name: &str, kind: Type, count: Option<u32>) {
        let names = match count {
            None => vec![name.to_string()],
            Some(count) => (0..count).map(|index| format!("{name}{index}")).collect(),
        };
        for name in names {
            let meaning = if kind == Type::Pred {
                Name::Predicate(self.fresh_predicate())
            } else {
                Name::Register(self.fresh(kind.bits()))
            };
            self.define(name, meaning);
        }
    }

    /// Gives a shared or local variable its place.
    pub(crate) fn variable(&mut self, variable: &Variable) -> Symbol {
        let address = match (variable.bytes, variable.space) {
            (None, _) => {
                self.dynamic_align = self.dynamic_align.max(Some(variable.align));
                Constant::Dynamic(0)
            }
            // What is passed to a call is the thread's own.
            (Some(bytes), Space::Local | Space::Param) => Constant::Value(self.local.place(bytes, variable.align)),
            (Some(bytes), _) => Constant::Value(self.shared.place(bytes, variable.align)),
        };
        let space = if variable.space == Space::Param { Space::Local } else { variable.space };
        Symbol { space, address }
    }

    /// The slot of a constant, in the wide or the narrow file.
    pub(crate) fn constant(&mut self, wide: bool, value: Constant) -> u32 {
        if let Some(slot) = self.constants.get(&(wide, value)) {
            return *slot;
        }
        let slot = self.fresh(if wide { 64 } else { 32 }).slot;
        self.constants.insert((wide, value), slot);
        slot
    }

    /// All constants: the file, the slot, the value.
    pub(crate) fn constants(&self) -> Vec<(bool, u32, Constant)> {
        let mut all: Vec<_> = self.constants.iter().map(|((wide, value), slot)| (*wide, *slot, *value)).collect();
        all.sort_by_key(|(wide, slot, _)| (*wide, *slot));
        all
    }
}
