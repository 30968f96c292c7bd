//! The body of a kernel: registers, labels and instructions (PTX manual, "Instruction Set", "Instruction Operands").

use super::ast::{Item, Operand, Prototype, Statement, Variable};
use super::lexer::Token;
use super::parser::Parser;
use super::types::{Space, Type};
use crate::Error;

impl Parser<'_> {
    /// Everything up to the brace that closes the kernel.
    pub(crate) fn body(&mut self) -> Result<Vec<Item>, Error> {
        let mut items = vec![];
        let mut depth = 0;
        let mut source = None;
        self.prototypes.clear();
        loop {
            if self.accept('}') {
                if depth == 0 {
                    return Ok(items);
                }
                depth -= 1;
                items.push(Item::Close);
            } else if self.accept('{') {
                depth += 1;
                items.push(Item::Open);
            } else if self.accept('.') {
                self.local_directive(&mut items, &mut source)?;
            } else if !self.accept(';') {
                items.push(match (self.peek(), self.peek_second()) {
                    (Token::Word(name), Token::Mark(':')) => {
                        self.next();
                        self.next();
                        Item::Label(name.to_string())
                    }
                    (Token::End, _) => return self.error("the body of the kernel never ends"),
                    _ => Item::Statement(self.statement(source)?),
                });
            }
        }
    }

    fn local_directive(&mut self, items: &mut Vec<Item>, source: &mut Option<(u32, u32)>) -> Result<(), Error> {
        match self.word()? {
            "reg" => self.registers(items)?,
            "loc" => {
                let (file, line) = (self.small()?, self.small()?);
                *source = Some((file, line));
                self.skip_line();
            }
            "pragma" => self.skip_to_semicolon()?,
            "callprototype" => {
                let Some(Item::Label(label)) = items.last() else {
                    return self.error("a prototype without a label");
                };
                let label = label.clone();
                let sizes = |variables: Vec<Variable>| variables.iter().map(|variable| variable.bytes).collect();
                let results = sizes(self.parameters()?);
                self.word()?;
                let params = sizes(self.parameters()?);
                self.prototypes.push((label, Prototype { results, params }));
                self.skip_to_semicolon()?;
            }
            "branchtargets" => {
                let Some(Item::Label(label)) = items.last() else {
                    return self.error("a list of branch targets without a label");
                };
                let label = label.clone();
                let mut targets = vec![self.word()?.to_string()];
                while self.accept(',') {
                    targets.push(self.word()?.to_string());
                }
                self.expect(';')?;
                items.push(Item::Targets(label, targets));
            }
            word => match Space::named(word) {
                // In a body, `.param` variables are the arguments and results of calls.
                Some(space @ (Space::Shared | Space::Local | Space::Param)) => {
                    items.extend(self.variables(space)?.into_iter().map(Item::Variable));
                }
                _ => return self.error(format!("the directive .{word} is not supported in a kernel")),
            },
        }
        Ok(())
    }

    /// `.reg .b32 %r<10>, %extra;`
    fn registers(&mut self, items: &mut Vec<Item>) -> Result<(), Error> {
        self.expect('.')?;
        let word = self.word()?;
        let Some(kind) = Type::named(word) else { return self.error(format!("no registers of type .{word}")) };
        loop {
            let name = self.word()?.to_string();
            let count = if self.accept('<') {
                let count = self.small()?;
                self.expect('>')?;
                Some(count)
            } else {
                None
            };
            if count.is_some_and(|count| count > 1 << 16) {
                return self.error("more than 65536 registers of one name");
            }
            items.push(Item::Register { name, kind, count });
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    fn statement(&mut self, source: Option<(u32, u32)>) -> Result<Statement, Error> {
        let guard = if self.accept('@') {
            let negated = self.accept('!');
            Some((self.word()?.to_string(), negated))
        } else {
            None
        };
        let line = self.line();
        let opcode = self.opcode()?;
        let mut operands = vec![];
        if !self.accept(';') {
            loop {
                operands.push(self.operand()?);
                if !self.accept(',') {
                    break;
                }
            }
            self.expect(';')?;
        }
        let prototype = match operands.last() {
            Some(Operand::Name(name)) if opcode.starts_with("call") => {
                let known = self.prototypes.iter().rev().find(|(label, _)| label == name);
                known.map(|(_, prototype)| prototype.clone())
            }
            _ => None,
        };
        Ok(Statement { line, source, guard, opcode, operands, prototype })
    }

    /// `ld.global.nc.L2::128B.v4.f32`: words with dots and double colons between them.
    fn opcode(&mut self) -> Result<String, Error> {
        let mut opcode = self.word()?.to_string();
        loop {
            if self.accept('.') {
                opcode.push('.');
            } else if self.peek() == Token::Mark(':') && self.peek_second() == Token::Mark(':') {
                self.next();
                self.next();
                opcode.push_str("::");
            } else {
                return Ok(opcode);
            }
            opcode.push_str(self.word()?);
        }
    }

    fn operand(&mut self) -> Result<Operand, Error> {
        match self.peek() {
            Token::Mark('{') => self.list('}'),
            // The arguments of a call.
            Token::Mark('(') => self.list(')'),
            Token::Mark('[') => self.address(),
            Token::Mark('!') => {
                self.next();
                Ok(Operand::Not(self.word()?.to_string()))
            }
            Token::Mark('-') => Ok(Operand::Literal(self.literal()?)),
            Token::Word("_") => {
                self.next();
                Ok(Operand::Sink)
            }
            Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => {
                Ok(Operand::Literal(self.literal()?))
            }
            Token::Word("WARP_SZ") => {
                self.next();
                Ok(Operand::Literal(super::literal::Literal::Int(32)))
            }
            _ => self.named_operand(),
        }
    }

    /// The operands up to a closing brace.
    fn list(&mut self, end: char) -> Result<Operand, Error> {
        self.next();
        let mut parts = vec![];
        while !self.accept(end) {
            parts.push(self.operand()?);
            if !self.accept(',') && self.peek() != Token::Mark(end) {
                return self.error(format!("expected ',' or {end:?}"));
            }
        }
        Ok(Operand::Vector(parts))
    }

    fn named_operand(&mut self) -> Result<Operand, Error> {
        let mut name = self.word()?.to_string();
        if self.accept('.') {
            name.push('.');
            name.push_str(self.word()?);
        }
        if self.accept('|') {
            return Ok(Operand::Pair(name, self.word()?.to_string()));
        }
        if matches!(self.peek(), Token::Mark('+' | '-')) {
            self.accept('+');
            return Ok(Operand::Sum(name, self.integer()?));
        }
        Ok(Operand::Name(name))
    }

    /// `[name + 4]`, `[name + -4]`, `[name]` or `[16]`
    fn address(&mut self) -> Result<Operand, Error> {
        self.expect('[')?;
        let base = match self.peek() {
            Token::Word(word) if !word.starts_with(|c: char| c.is_ascii_digit()) => Some(self.word()?.to_string()),
            _ => None,
        };
        let offset =
            if base.is_none() || self.accept('+') || self.peek() == Token::Mark('-') { self.integer()? } else { 0 };
        if self.peek() == Token::Mark(',') {
            return self.error("addresses with coordinates (textures, tensor maps) are not supported");
        }
        self.expect(']')?;
        Ok(Operand::Address(base, offset))
    }
}
