//! Kinds of instructions, after the chapters of the PTX manual's "Instructions" and the units that execute them.

use crate::Space;

/// A kind of instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Integer arithmetic, logic, shifts and bit fields.
    Integer,
    /// Arithmetic in f32.
    F32,
    /// Arithmetic in f64.
    F64,
    /// Arithmetic in f16 and bf16, packed or not.
    Half,
    /// `rcp`, `sqrt`, `rsqrt`, `sin`, `cos`, `lg2`, `ex2`, `tanh` in any type.
    Special,
    /// `cvt`
    Conversion,
    /// `mov`, `cvta`, `isspacep`
    Move,
    /// Comparisons, selections and the logic of predicates.
    Predicate,
    /// Branches, exits, traps.
    Control,
    /// Accesses to one state space, with `ldmatrix`, `stmatrix`, atomics and prefetches; [`Space::Generic`] where the opcode names
    /// none.
    Memory(Space),
    /// `cp.async` from global to shared memory.
    Copy,
    /// `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`, `movmatrix`: lanes of a warp tell each other something.
    Exchange,
    /// Barriers, fences, and the commits and waits of `cp.async`.
    Synchronisation,
    /// `mma`
    Matrix,
}

impl Class {
    /// The class of an opcode with its modifiers.
    pub fn of(opcode: &str) -> Self {
        let mut words = opcode.split('.');
        let name = words.next().unwrap_or_default();
        let has = |wanted: &str| opcode.split('.').skip(1).any(|word| word == wanted);
        match name {
            "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "ldmatrix" | "stmatrix" => {
                Self::Memory(words.find_map(Space::named).unwrap_or(Space::Generic))
            }
            "cp" if has("commit_group") || has("wait_group") || has("wait_all") => Self::Synchronisation,
            "cp" => Self::Copy,
            "bar" | "barrier" | "membar" | "fence" | "mbarrier" | "griddepcontrol" => Self::Synchronisation,
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" | "movmatrix" => Self::Exchange,
            "mma" => Self::Matrix,
            "setp" | "set" | "selp" | "slct" | "testp" => Self::Predicate,
            _ if has("pred") => Self::Predicate,
            "mov" | "cvta" | "isspacep" | "createpolicy" => Self::Move,
            "cvt" => Self::Conversion,
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "nanosleep" => Self::Control,
            "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => Self::Special,
            _ if has("f32") => Self::F32,
            _ if has("f64") => Self::F64,
            _ if ["f16", "f16x2", "bf16", "bf16x2"].into_iter().any(has) => Self::Half,
            _ => Self::Integer,
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Integer => "integer",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Half => "half",
            Self::Special => "special function",
            Self::Conversion => "conversion",
            Self::Move => "move",
            Self::Predicate => "predicate",
            Self::Control => "control",
            Self::Memory(space) => return f.pad(&format!("memory, {space}")),
            Self::Copy => "async copy",
            Self::Exchange => "exchange",
            Self::Synchronisation => "synchronisation",
            Self::Matrix => "matrix",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (opcode, class) in [
            ("add.s32", Class::Integer),
            ("lop3.b32", Class::Integer),
            ("fma.rn.f32", Class::F32),
            ("div.full.f32", Class::F32),
            ("mul.f64", Class::F64),
            ("fma.rn.bf16x2", Class::Half),
            ("add.f16", Class::Half),
            ("ex2.approx.ftz.f32", Class::Special),
            ("cvt.rn.bf16.f32", Class::Conversion),
            ("mov.b32", Class::Move),
            ("cvta.to.global.u64", Class::Move),
            ("mov.pred", Class::Predicate),
            ("setp.lt.f32", Class::Predicate),
            ("selp.b32", Class::Predicate),
            ("bra.uni", Class::Control),
            ("ld.param.u64", Class::Memory(Space::Param)),
            ("ld.global.nc.L2::128B.v4.f32", Class::Memory(Space::Global)),
            ("st.shared::cta.u32", Class::Memory(Space::Shared)),
            ("ld.u32", Class::Memory(Space::Generic)),
            ("red.global.add.f32", Class::Memory(Space::Global)),
            ("ldmatrix.sync.aligned.m8n8.x4.shared.b16", Class::Memory(Space::Shared)),
            ("cp.async.cg.shared.global", Class::Copy),
            ("cp.async.wait_group", Class::Synchronisation),
            ("bar.warp.sync", Class::Synchronisation),
            ("shfl.sync.bfly.b32", Class::Exchange),
            ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", Class::Matrix),
            ("", Class::Integer),
        ] {
            assert_eq!(Class::of(opcode), class, "{opcode}");
        }
    }
}
