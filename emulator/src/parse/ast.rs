//! What the parser makes of a module: declarations and statements, names not yet resolved.

use super::literal::Literal;
use super::types::{Space, Type};

/// A whole module (PTX manual, "PTX Module Directives").
#[derive(Debug, Default)]
pub(crate) struct Ast {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) files: Vec<(u32, String)>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) functions: Vec<Function>,
}

/// A variable of a state space, or a parameter of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: Space,
    /// The type of its elements.
    pub(crate) kind: Type,
    pub(crate) align: u32,
    /// Its size; `None` for `[]`, which only dynamic shared memory may have.
    pub(crate) bytes: Option<u64>,
    /// The bytes that an initialiser gives; shorter than the variable where the rest is zero.
    pub(crate) initial: Vec<u8>,
    /// The addresses among them, by offset: eight bytes each, zero so far.
    pub(crate) addresses: Vec<(usize, Reference)>,
}

/// The address of a variable or a function, in an initial value.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) offset: i64,
}

/// A kernel.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) params: Vec<Variable>,
    /// `.maxntid` and `.reqntid` (PTX manual, "Performance-Tuning Directives").
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) body: Vec<Item>,
}

/// A device function with a body.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) results: Vec<Variable>,
    pub(crate) params: Vec<Variable>,
    pub(crate) body: Vec<Item>,
}

/// One item of a kernel's body.
#[derive(Debug)]
pub(crate) enum Item {
    /// `{`: names that are declared from here on end at the matching `Close`.
    Open,
    Close,
    /// `.reg`: a register, or with a count the family `%r0` to `%r(count-1)`.
    Register {
        name: String,
        kind: Type,
        count: Option<u32>,
    },
    Variable(Variable),
    Label(String),
    /// `.branchtargets` behind its label: the list that `brx.idx` chooses from.
    Targets(String, Vec<String>),
    Statement(Statement),
}

/// An instruction.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) line: u32,
    /// File number and line of the last `.loc`, if there was one.
    pub(crate) source: Option<(u32, u32)>,
    /// The predicate register and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
    /// What a call through a pointer passes.
    pub(crate) prototype: Option<Prototype>,
}

/// `.callprototype`: the sizes of the results and the parameters of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prototype {
    pub(crate) results: Vec<Option<u64>>,
    pub(crate) params: Vec<Option<u64>>,
}

/// An operand (PTX manual, "Instruction Operands").
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, a variable or a label; with a component for `%tid.x`.
    Name(String),
    /// `!p`
    Not(String),
    Literal(Literal),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `variable + offset`, outside of an address.
    Sum(String, i64),
    /// `[base + offset]`, the base being a name or nothing.
    Address(Option<String>, i64),
    /// `d|p`: two destinations.
    Pair(String, String),
    /// `_`: a destination that is thrown away.
    Sink,
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Not(name) => write!(f, "!{name}"),
            Self::Sum(name, offset) => write!(f, "{name}+{offset}"),
            Self::Literal(Literal::Int(value)) => write!(f, "{value}"),
            Self::Literal(Literal::Single(bits)) => write!(f, "0f{bits:08X}"),
            Self::Literal(Literal::Double(value)) => write!(f, "0d{:016X}", value.to_bits()),
            Self::Vector(parts) => {
                let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
                write!(f, "{{{}}}", parts.join(", "))
            }
            Self::Address(None, offset) => write!(f, "[{offset}]"),
            Self::Address(Some(base), 0) => write!(f, "[{base}]"),
            Self::Address(Some(base), offset) => write!(f, "[{base}+{offset}]"),
            Self::Pair(d, p) => write!(f, "{d}|{p}"),
            Self::Sink => f.write_str("_"),
        }
    }
}

impl std::fmt::Display for Statement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((name, negated)) = &self.guard {
            write!(f, "@{}{name} ", if *negated { "!" } else { "" })?;
        }
        f.write_str(&self.opcode)?;
        let operands: Vec<String> = self.operands.iter().map(ToString::to_string).collect();
        if !operands.is_empty() {
            write!(f, " {}", operands.join(", "))?;
        }
        Ok(())
    }
}
