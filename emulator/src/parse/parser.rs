//! Module level: directives, variables and kernels (PTX manual, "Directives").

use super::ast::{Ast, Entry, Function, Prototype, Variable};
use super::lexer::{Spot, Token, tokens};
use super::literal::Literal;
use super::types::Space;
use crate::Error;

/// Reads tokens one after the other. Statements are read in `body.rs`.
pub(crate) struct Parser<'a> {
    spots: Vec<Spot<'a>>,
    at: usize,
    /// The prototypes of the body that is read, by label.
    pub(super) prototypes: Vec<(String, Prototype)>,
}

/// Parses the text of a module.
pub(crate) fn parse(text: &str) -> Result<Ast, Error> {
    let mut parser = Parser { spots: tokens(text)?, at: 0, prototypes: vec![] };
    let mut ast = Ast::default();
    while parser.peek() != Token::End {
        parser.directive(&mut ast)?;
    }
    if ast.version == (0, 0) {
        return Err(Error::syntax(1, "no .version directive: this is not a PTX module"));
    }
    Ok(ast)
}

impl<'a> Parser<'a> {
    pub(crate) fn peek(&self) -> Token<'a> {
        self.spots[self.at].token
    }

    /// The token after the next one.
    pub(crate) fn peek_second(&self) -> Token<'a> {
        self.spots.get(self.at + 1).map_or(Token::End, |spot| spot.token)
    }

    pub(crate) fn line(&self) -> u32 {
        self.spots[self.at].line
    }

    pub(crate) fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        if self.at + 1 < self.spots.len() {
            self.at += 1;
        }
        token
    }

    pub(crate) fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::syntax(self.line(), message))
    }

    /// Takes the mark if it is next.
    pub(crate) fn accept(&mut self, mark: char) -> bool {
        let found = self.peek() == Token::Mark(mark);
        if found {
            self.next();
        }
        found
    }

    pub(crate) fn expect(&mut self, mark: char) -> Result<(), Error> {
        if self.accept(mark) { Ok(()) } else { self.error(format!("expected {mark:?}, found {:?}", self.peek())) }
    }

    pub(crate) fn word(&mut self) -> Result<&'a str, Error> {
        match self.peek() {
            Token::Word(word) => {
                self.next();
                Ok(word)
            }
            other => self.error(format!("expected a name, found {other:?}")),
        }
    }

    /// A number, with its sign.
    pub(crate) fn literal(&mut self) -> Result<Literal, Error> {
        let negative = self.accept('-');
        let word = self.word()?;
        match Literal::parse(word) {
            Some(literal) => Ok(if negative { literal.negated() } else { literal }),
            None => self.error(format!("{word:?} is not a number")),
        }
    }

    pub(crate) fn integer(&mut self) -> Result<i64, Error> {
        match self.literal()? {
            Literal::Int(value) => Ok(value),
            other => self.error(format!("expected an integer, found {other:?}")),
        }
    }

    pub(crate) fn small(&mut self) -> Result<u32, Error> {
        let value = self.integer()?;
        u32::try_from(value).or_else(|_| self.error(format!("{value} is out of range here")))
    }

    fn directive(&mut self, ast: &mut Ast) -> Result<(), Error> {
        self.expect('.')?;
        match self.word()? {
            "version" => {
                let word = self.word()?;
                let parts = word.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                ast.version = parts.map_or_else(|| self.error(format!("{word:?} is not a version")), Ok)?;
            }
            "target" => {
                ast.target = self.word()?.to_string();
                while self.accept(',') {
                    self.word()?;
                }
            }
            "address_size" => {
                if self.integer()? != 64 {
                    return self.error("only .address_size 64 is supported");
                }
            }
            "file" => ast.files.push(self.file()?),
            "loc" => self.skip_line(),
            "pragma" => self.skip_to_semicolon()?,
            "section" => self.skip_braces()?,
            "extern" | "visible" | "weak" | "common" => {}
            "func" => ast.functions.extend(self.function()?),
            "entry" => {
                let entry = self.entry()?;
                ast.entries.push(entry);
            }
            word => match Space::named(word) {
                Some(space @ (Space::Global | Space::Shared | Space::Const)) => {
                    ast.variables.extend(self.variables(space)?);
                }
                _ => return self.error(format!("the directive .{word} is not supported")),
            },
        }
        Ok(())
    }

    /// `.file 1 "name" [, timestamp, size]`
    fn file(&mut self) -> Result<(u32, String), Error> {
        let index = self.small()?;
        let Token::Text(name) = self.next() else { return self.error("expected the name of a file") };
        while self.accept(',') {
            self.integer()?;
        }
        Ok((index, name.to_string()))
    }

    /// Directives of debugging information end with their line, not with a semicolon.
    pub(crate) fn skip_line(&mut self) {
        let line = self.spots[self.at - 1].line;
        while self.line() == line && self.peek() != Token::End {
            self.next();
        }
    }

    pub(crate) fn skip_to_semicolon(&mut self) -> Result<(), Error> {
        while !self.accept(';') {
            if self.next() == Token::End {
                return self.error("expected ';'");
            }
        }
        Ok(())
    }

    /// Skips to the end of the next `{ ... }`.
    fn skip_braces(&mut self) -> Result<(), Error> {
        let mut depth = 0;
        loop {
            match self.next() {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') if depth == 1 => return Ok(()),
                Token::Mark('}') => depth -= 1,
                Token::End => return self.error("expected '}'"),
                _ => {}
            }
        }
    }

    /// `.func (results) name (params) { ... }`, or a declaration, which ends with a semicolon.
    fn function(&mut self) -> Result<Option<Function>, Error> {
        let results = self.parameters()?;
        let name = self.word()?.to_string();
        let params = self.parameters()?;
        while self.accept('.') {
            match self.word()? {
                "noreturn" => {}
                word => return self.error(format!("the directive .{word} is not supported")),
            }
        }
        if self.accept(';') {
            return Ok(None);
        }
        self.expect('{')?;
        let body = self.body()?;
        Ok(Some(Function { name, results, params, body }))
    }

    /// `(.param .u64 a, .param .u32 b)`, or nothing.
    pub(super) fn parameters(&mut self) -> Result<Vec<Variable>, Error> {
        let mut params = vec![];
        if !self.accept('(') || self.accept(')') {
            return Ok(params);
        }
        loop {
            self.expect('.')?;
            if self.word()? != "param" {
                return self.error("expected .param");
            }
            params.push(self.variable(Space::Param)?);
            if !self.accept(',') {
                self.expect(')')?;
                return Ok(params);
            }
        }
    }

    fn entry(&mut self) -> Result<Entry, Error> {
        let name = self.word()?.to_string();
        let params = self.parameters()?;
        let (mut max_threads, mut required_threads) = (None, None);
        while self.accept('.') {
            match self.word()? {
                "maxntid" => max_threads = Some(self.triple()?),
                "reqntid" => required_threads = Some(self.triple()?),
                "minnctapersm" | "maxnctapersm" | "maxnreg" => {
                    self.integer()?;
                }
                "pragma" => self.skip_to_semicolon()?,
                word @ ("reqnctapercluster" | "maxclusterrank" | "explicitcluster" | "blocksareclusters") => {
                    return self.error(format!("the directive .{word} is not supported: there are no clusters"));
                }
                word => return self.error(format!("the directive .{word} is not supported")),
            }
        }
        self.expect('{')?;
        let body = self.body()?;
        Ok(Entry { name, params, max_threads, required_threads, body })
    }

    fn triple(&mut self) -> Result<[u32; 3], Error> {
        let mut out = [1; 3];
        out[0] = self.small()?;
        for slot in &mut out[1..] {
            if self.accept(',') {
                *slot = self.small()?;
            }
        }
        Ok(out)
    }
}
