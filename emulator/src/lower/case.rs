//! One statement on its way to an instruction: its modifiers, each of which must be used, and its operands.

use super::flow::{Cell, Flow, Rule, bitwise_operands};
use super::function_address;
use super::instruction::{Address, Base};
use super::slots::{Constant, Name, Slots, Special};
use crate::Space;
use crate::exec::registers::{Pred, Register};
use crate::numeric::Rounding;
use crate::parse::ast::{Ast, Operand, Statement};
use crate::parse::types::Type;

/// A result whose error says in words what is not supported.
pub(crate) type Lowered<T> = Result<T, String>;

/// A statement, and what is needed to lower it.
pub(crate) struct Case<'a> {
    pub(crate) slots: &'a mut Slots,
    /// The variables and functions of the module.
    pub(crate) ast: &'a Ast,
    /// The whole opcode, and its name without the modifiers.
    pub(crate) opcode: &'a str,
    pub(crate) name: &'a str,
    modifiers: Vec<&'a str>,
    pub(crate) operands: &'a [Operand],
    /// The registers that it reads and writes, as far as it has been lowered.
    pub(crate) flow: Flow,
}

impl<'a> Case<'a> {
    pub(crate) fn new(slots: &'a mut Slots, ast: &'a Ast, statement: &'a Statement) -> Self {
        let mut words = statement.opcode.split('.');
        let name = words.next().unwrap_or_default();
        let (opcode, operands) = (statement.opcode.as_str(), &statement.operands);
        Self { slots, ast, opcode, name, modifiers: words.collect(), operands, flow: Flow::default() }
    }

    /// Uses up a modifier, if it is there.
    pub(crate) fn take(&mut self, modifier: &str) -> bool {
        let found = self.modifiers.iter().position(|word| *word == modifier);
        if let Some(at) = found {
            self.modifiers.remove(at);
        }
        found.is_some()
    }

    /// Uses up the modifier that stands next, if `choose` knows it.
    pub(crate) fn choose<T>(&mut self, choose: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, found) = self.modifiers.iter().enumerate().find_map(|(at, word)| Some((at, choose(word)?)))?;
        self.modifiers.remove(at);
        Some(found)
    }

    /// Uses up the modifier that stands next, if it is in the table, and gives what the table says of it.
    pub(crate) fn one_of<T: Copy>(&mut self, table: &[(&str, T)]) -> Option<T> {
        self.choose(|word| table.iter().find(|(name, _)| *name == word).map(|(_, meaning)| *meaning))
    }

    /// Uses up the next type.
    pub(crate) fn kind(&mut self) -> Lowered<Type> {
        self.choose(Type::named).ok_or_else(|| "a type is missing".to_string())
    }

    /// Uses up a modifier that must be there.
    pub(crate) fn kind_is(&mut self, word: &str) -> Lowered<()> {
        if self.take(word) { Ok(()) } else { Err(format!(".{word} is missing")) }
    }

    /// Uses up a rounding modifier.
    pub(crate) fn rounding(&mut self) -> Option<Rounding> {
        self.choose(|word| {
            Some(match word {
                "rn" | "rni" => Rounding::Nearest,
                "rz" | "rzi" => Rounding::Zero,
                "rm" | "rmi" => Rounding::Down,
                "rp" | "rpi" => Rounding::Up,
                _ => return None,
            })
        })
    }

    /// Every modifier must have been used, and there must be `count` operands.
    pub(crate) fn finish(&self, count: usize) -> Lowered<()> {
        if let Some(left) = self.modifiers.first() {
            return Err(format!("the modifier .{left} is not supported here"));
        }
        if self.operands.len() != count {
            return Err(format!("{} operands where {count} are expected", self.operands.len()));
        }
        Ok(())
    }

    /// Settles how the result depends on sources that are not known.
    pub(crate) fn settle_rule(&mut self) {
        if matches!(self.flow.rule, Rule::Any)
            && let Some(count) = bitwise_operands(self.opcode)
        {
            let is_register = |operand: &Operand| match operand {
                Operand::Name(name) | Operand::Not(name) => {
                    matches!(self.slots.find(name), Some(Name::Register(_) | Name::Predicate(_)))
                }
                _ => false,
            };
            let data = self.operands.iter().skip(1).take(count).map(|operand| match operand {
                Operand::Vector(parts) => parts.iter().filter(|part| is_register(part)).count(),
                single => usize::from(is_register(single)),
            });
            self.flow.rule = Rule::Bitwise(data.sum());
        }
    }

    /// The modifiers that are left.
    pub(crate) fn modifiers(&self) -> &[&'a str] {
        &self.modifiers
    }

    pub(crate) fn operand(&self, index: usize) -> Lowered<&'a Operand> {
        self.operands.get(index).ok_or_else(|| format!("operand {} is missing", index + 1))
    }

    fn register_named(&self, name: &str) -> Lowered<Register> {
        match self.slots.find(name) {
            Some(Name::Register(register)) => Ok(register),
            Some(_) => Err(format!("{name} is not a data register")),
            None => Err(format!("{name} is not declared")),
        }
    }

    /// A destination of any width; `_` becomes a register that nobody reads.
    pub(crate) fn register(&mut self, operand: &Operand, bits: u32) -> Lowered<Register> {
        let register = match operand {
            Operand::Name(name) => self.register_named(name)?,
            Operand::Sink => self.slots.fresh(bits),
            other => return Err(format!("{other} is not a register")),
        };
        self.flow.writes.push(Cell::Data(register));
        Ok(register)
    }

    /// The slot of a destination of exactly the type's width.
    pub(crate) fn target(&mut self, index: usize, kind: Type) -> Lowered<u32> {
        let register = self.register(self.operand(index)?, kind.bits())?;
        fits(register, kind)?;
        Ok(register.slot)
    }

    /// The slot of a source of exactly the type's width.
    pub(crate) fn source(&mut self, index: usize, kind: Type) -> Lowered<u32> {
        let register = self.value(self.operand(index)?, kind)?;
        fits(register, kind)?;
        Ok(register.slot)
    }

    /// The slots of operands `from..from + N`.
    pub(crate) fn sources<const N: usize>(&mut self, from: usize, kind: Type) -> Lowered<[u32; N]> {
        let mut out = [0; N];
        for (index, slot) in out.iter_mut().enumerate() {
            *slot = self.source(from + index, kind)?;
        }
        Ok(out)
    }

    /// A source that may be wider than the type (PTX manual, "Operand Size Exceeding Instruction-Type Size").
    pub(crate) fn value(&mut self, operand: &Operand, kind: Type) -> Lowered<Register> {
        let register = self.value_of(operand, kind)?;
        self.flow.operands.push(register);
        Ok(register)
    }

    fn value_of(&mut self, operand: &Operand, kind: Type) -> Lowered<Register> {
        let wide = kind.bits() > 32;
        match operand {
            Operand::Name(name) => {
                if let Some(special) = Special::named(name) {
                    return Ok(self.constant(wide, Constant::Special(special), kind.bits()));
                }
                if let Some(address) = self.symbol(name).filter(|_| kind.bits() >= 32) {
                    return Ok(self.constant(wide, address.1, kind.bits()));
                }
                let register = self.register_named(name)?;
                self.flow.reads.push(Cell::Data(register));
                Ok(register)
            }
            Operand::Sum(name, offset) => match self.symbol(name).and_then(|(_, address)| address.plus(*offset)) {
                Some(address) if kind.bits() >= 32 => Ok(self.constant(wide, address, kind.bits())),
                _ => Err(format!("{name} is not a variable")),
            },
            Operand::Literal(literal) => {
                let float = matches!(kind, Type::F32 | Type::F64);
                let bits = literal.bits(kind.bits(), float).ok_or("this constant does not fit the type")?;
                Ok(self.constant(wide, Constant::Value(bits), kind.bits()))
            }
            other => Err(format!("{other} is not a value")),
        }
    }

    fn constant(&mut self, wide: bool, value: Constant, bits: u32) -> Register {
        Register { slot: self.slots.constant(wide, value), bits }
    }

    /// The space of a variable and its address there; a function's address is generic.
    pub(crate) fn symbol(&mut self, name: &str) -> Option<(Space, Constant)> {
        match self.slots.find(name) {
            Some(Name::Variable(symbol)) => return Some((symbol.space, symbol.address)),
            Some(_) => return None,
            None => {}
        }
        if let Some(address) = function_address(self.ast, name) {
            return Some((Space::Generic, Constant::Value(address)));
        }
        let index = self.ast.variables.iter().position(|variable| variable.name == name)?;
        let variable = &self.ast.variables[index];
        if variable.space == Space::Shared {
            let symbol = self.slots.variable(variable);
            // Known from now on everywhere in the kernel, so that it is laid out once.
            self.slots.define_outermost(name.to_string(), Name::Variable(symbol));
            return Some((symbol.space, symbol.address));
        }
        Some((variable.space, Constant::Global(index, 0)))
    }

    /// A predicate destination.
    pub(crate) fn predicate(&mut self, operand: &Operand) -> Lowered<u32> {
        let slot = match operand {
            Operand::Sink => self.slots.fresh_predicate(),
            other => self.predicate_named(other)?,
        };
        self.flow.writes.push(Cell::Predicate(slot));
        Ok(slot)
    }

    fn predicate_named(&self, operand: &Operand) -> Lowered<u32> {
        match operand {
            Operand::Name(name) => match self.slots.find(name) {
                Some(Name::Predicate(slot)) => Ok(slot),
                _ => Err(format!("{name} is not a predicate")),
            },
            other => Err(format!("{other} is not a predicate")),
        }
    }

    /// A predicate source, which may be negated.
    pub(crate) fn condition(&mut self, index: usize) -> Lowered<Pred> {
        let pred = match self.operand(index)? {
            Operand::Not(name) => Pred { slot: self.predicate_named(&Operand::Name(name.clone()))?, negated: true },
            other => Pred { slot: self.predicate_named(other)?, negated: false },
        };
        self.flow.reads.push(Cell::Predicate(pred.slot));
        Ok(pred)
    }

    /// The space that an access really means: what is passed to calls is called `.param` but lives in local memory.
    pub(crate) fn home(&mut self, index: usize, space: Space) -> Lowered<Space> {
        if let (Space::Param, Operand::Address(Some(name), _)) = (space, self.operand(index)?)
            && let Some((Space::Local, _)) = self.symbol(name)
        {
            return Ok(Space::Local);
        }
        Ok(space)
    }

    /// `[register + offset]`, `[variable + offset]` or `[number]`; the variable must live in the space.
    pub(crate) fn address(&mut self, index: usize, space: Space) -> Lowered<Address> {
        let Operand::Address(base, offset) = self.operand(index)? else {
            return Err(format!("operand {} is not an address", index + 1));
        };
        let offset = *offset;
        let Some(name) = base else { return Ok(Address { base: Base::None, offset }) };
        if let Some((home, address)) = self.symbol(name) {
            if home != space && !(space == Space::Generic && matches!(home, Space::Global | Space::Const)) {
                return Err(format!("{name} lives in {home} memory, not in {space} memory"));
            }
            return Ok(Address { base: Base::Wide(self.slots.constant(true, address)), offset });
        }
        let register = self.register_named(name)?;
        self.flow.addresses.push(Cell::Data(register));
        match register.bits {
            64 => Ok(Address { base: Base::Wide(register.slot), offset }),
            32 => Ok(Address { base: Base::Narrow(register.slot), offset }),
            bits => Err(format!("an address of {bits} bits")),
        }
    }
}

fn fits(register: Register, kind: Type) -> Lowered<()> {
    if register.bits == kind.bits() {
        return Ok(());
    }
    Err(format!("a register of {} bits where the type has {}", register.bits, kind.bits()))
}
