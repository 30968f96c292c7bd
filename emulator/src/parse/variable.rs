//! Variables and parameters (PTX manual, "Variables": alignment, arrays, initializers).

use super::ast::{Reference, Variable};
use super::lexer::Token;
use super::parser::Parser;
use super::types::{Space, Type};
use crate::Error;

impl Parser<'_> {
    /// `a, b[4];` after the space's name; every one with the same type.
    pub(crate) fn variables(&mut self, space: Space) -> Result<Vec<Variable>, Error> {
        let out = vec![self.variable(space)?];
        if self.peek() == Token::Mark(',') {
            return self.error("one variable a declaration, please: lists are not supported");
        }
        self.expect(';')?;
        Ok(out)
    }

    /// `.align 4 .b8 name[8] = {...}` (PTX manual, "Variables": alignment, arrays, initializers).
    pub(super) fn variable(&mut self, space: Space) -> Result<Variable, Error> {
        let (mut align, mut kind, mut lanes) = (None, None, 1);
        while self.accept('.') {
            match self.word()? {
                "align" => align = Some(self.small()?),
                // `.ptr .global .align 16` describes what a pointer points to, not the variable.
                "ptr" => {
                    while self.accept('.') {
                        if self.word()? == "align" {
                            self.small()?;
                        }
                    }
                }
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                word => match Type::named(word) {
                    Some(found) => kind = Some(found),
                    None => return self.error(format!("the attribute .{word} is not supported here")),
                },
            }
        }
        let Some(kind) = kind.filter(|kind| *kind != Type::Pred) else {
            return self.error("a variable needs a type");
        };
        let name = self.word()?.to_string();
        let element = u64::from(kind.bytes()) * lanes;
        let mut bytes = Some(element);
        while self.accept('[') {
            let count = if self.accept(']') { None } else { Some(self.integer()?) };
            let sized = match (bytes, count) {
                (_, None) => Some(None),
                (None, _) => None,
                (Some(bytes), Some(count)) => u64::try_from(count).ok().and_then(|n| bytes.checked_mul(n)).map(Some),
            };
            bytes = sized.map_or_else(|| self.error("the array is too large"), Ok)?;
            if count.is_some() {
                self.expect(']')?;
            }
        }
        let align = align.unwrap_or(element as u32);
        if !align.is_power_of_two() || align > 1 << 16 {
            return self.error(format!("{align} is not a possible alignment"));
        }
        let (mut initial, mut addresses) = (vec![], vec![]);
        if self.accept('=') {
            self.initialiser(kind, &mut initial, &mut addresses)?;
        }
        if bytes.is_none() && !initial.is_empty() {
            bytes = Some(initial.len() as u64);
        }
        if bytes.is_some_and(|bytes| initial.len() as u64 > bytes) {
            return self.error("more initial values than the variable has elements");
        }
        if bytes.is_none() && space != Space::Shared {
            return self.error(format!("the size of {name} is missing"));
        }
        Ok(Variable { name, space, kind, align, bytes, initial, addresses })
    }

    fn initialiser(
        &mut self,
        kind: Type,
        out: &mut Vec<u8>,
        addresses: &mut Vec<(usize, Reference)>,
    ) -> Result<(), Error> {
        if self.accept('{') {
            while !self.accept('}') {
                self.initialiser(kind, out, addresses)?;
                if !self.accept(',') && self.peek() != Token::Mark('}') {
                    return self.error("expected ',' or '}'");
                }
            }
            return Ok(());
        }
        if matches!(self.peek(), Token::Word(word) if !word.starts_with(|c: char| c.is_ascii_digit())) {
            let reference = self.reference()?;
            if kind.bits() != 64 {
                return self.error("an address in an initial value needs 64 bits");
            }
            addresses.push((out.len(), reference));
            out.extend_from_slice(&[0; 8]);
            return Ok(());
        }
        let float = matches!(kind, Type::F32 | Type::F64);
        let literal = self.literal()?;
        let Some(bits) = literal.bits(kind.bits(), float) else {
            return self.error("this constant does not fit the variable's type");
        };
        out.extend_from_slice(&bits.to_le_bytes()[..kind.bytes() as usize]);
        Ok(())
    }

    /// `name`, `name+4` or `generic(name)+4`: here addresses of global memory are generic ones.
    fn reference(&mut self) -> Result<Reference, Error> {
        let mut name = self.word()?.to_string();
        if name == "generic" && self.accept('(') {
            name = self.word()?.to_string();
            self.expect(')')?;
        }
        let offset = if self.accept('+') || self.peek() == Token::Mark('-') { self.integer()? } else { 0 };
        Ok(Reference { name, offset })
    }
}
