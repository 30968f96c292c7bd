//! The body of a kernel, item by item, and the bodies of the functions it calls.
//!
//! A call is lowered in place: the function's body is put where the call stands, its parameters are the caller's
//! variables, and `ret` is a branch behind it. So a kernel stays one list of instructions. Recursion cannot be done in
//! this way, and calls through pointers cannot either; compilers emit them rarely.

use super::case::{Case, Lowered};
use super::instruction::{Instruction, Op};
use super::operation;
use super::slots::{Name, Slots, Symbol};
use crate::Error;
use crate::exec::registers::Pred;
use crate::parse::ast::{Ast, Function, Item, Operand, Statement, Variable};

/// More instructions than any sensible kernel has; calls within calls could add up to more than memory holds.
const MAX_CODE: usize = 1 << 20;

/// A kernel while it is lowered.
pub(super) struct Body<'a> {
    pub(super) ast: &'a Ast,
    pub(super) kernel: &'a str,
    pub(super) slots: Slots,
    pub(super) code: Vec<Instruction>,
    /// The functions whose bodies are open.
    pub(super) calls: Vec<&'a str>,
}

impl<'a> Body<'a> {
    /// Lowers items; `end` is where `ret` goes to in a function.
    pub(super) fn items(&mut self, items: &'a [Item], end: Option<usize>) -> Result<(), Error> {
        let mut labels = self.labels(items).into_iter();
        self.open(labels.next());
        for item in items {
            match item {
                Item::Open => self.open(labels.next()),
                Item::Close => self.slots.close(),
                Item::Register { name, kind, count } => self.slots.register(name, *kind, *count),
                Item::Variable(variable) => {
                    let symbol = self.slots.variable(variable);
                    self.slots.define(variable.name.clone(), Name::Variable(symbol));
                }
                Item::Label(_) => {}
                Item::Statement(statement) => self.statement(statement, end)?,
            }
        }
        self.slots.close();
        Ok(())
    }

    /// Opens a scope with its labels, which are known before they are reached.
    fn open(&mut self, labels: Option<Vec<(String, usize)>>) {
        self.slots.open();
        for (name, at) in labels.unwrap_or_default() {
            self.slots.define(name, Name::Label(at));
        }
    }

    /// The labels of every scope, in the order in which the scopes open, with the instruction they stand before.
    fn labels(&self, items: &[Item]) -> Vec<Vec<(String, usize)>> {
        let mut scopes = vec![vec![]];
        let mut open = vec![0];
        let mut at = self.code.len();
        for item in items {
            match item {
                Item::Open => {
                    open.push(scopes.len());
                    scopes.push(vec![]);
                }
                Item::Close => {
                    open.pop();
                }
                Item::Label(name) => {
                    if let Some(scope) = open.last() {
                        scopes[*scope].push((name.clone(), at));
                    }
                }
                Item::Statement(statement) => at += self.size(statement, 0),
                _ => {}
            }
        }
        scopes
    }

    /// How many instructions a statement becomes: a call one and those of the function.
    fn size(&self, statement: &Statement, depth: usize) -> usize {
        let Some(function) = self.callee(statement).filter(|_| depth <= self.ast.functions.len()) else { return 1 };
        function.body.iter().fold(1, |sum: usize, item| match item {
            Item::Statement(inner) if sum <= MAX_CODE => sum + self.size(inner, depth + 1),
            _ => sum,
        })
    }

    /// The function that a statement calls, if its body is known.
    fn callee(&self, statement: &Statement) -> Option<&'a Function> {
        if !statement.opcode.starts_with("call") {
            return None;
        }
        let name = statement.operands.iter().find_map(|operand| match operand {
            Operand::Name(name) => Some(name),
            _ => None,
        })?;
        self.ast.functions.iter().find(|function| function.name == *name)
    }

    fn statement(&mut self, statement: &'a Statement, end: Option<usize>) -> Result<(), Error> {
        let wrong = wrong(self.kernel, statement);
        if self.code.len() > MAX_CODE {
            return Err(wrong(format!("more than {MAX_CODE} instructions")));
        }
        let guard = guard(&self.slots, statement).map_err(wrong)?;
        if let Some(function) = self.callee(statement) {
            return self.call(statement, function, guard);
        }
        let op = match end {
            Some(end) if matches!(statement.opcode.as_str(), "ret" | "ret.uni") => Op::Branch(end),
            _ => operation(&mut Case::new(&mut self.slots, &self.ast.variables, statement)).map_err(wrong)?,
        };
        self.push(statement, op, guard);
        Ok(())
    }

    fn push(&mut self, statement: &Statement, op: Op, guard: Option<Pred>) {
        let opcode = statement.opcode.as_str().into();
        self.code.push(Instruction { op, guard, opcode, line: statement.line, source: statement.source });
    }

    /// `call{.uni} {(results),} name{, (arguments)}`
    fn call(&mut self, statement: &'a Statement, function: &'a Function, guard: Option<Pred>) -> Result<(), Error> {
        let wrong = wrong(self.kernel, statement);
        if self.calls.contains(&function.name.as_str()) {
            return Err(wrong("recursion is not supported".to_string()));
        }
        let bound = self.arguments(statement, function).map_err(wrong)?;
        let end = self.code.len() + self.size(statement, 0);
        // Where the guard does not hold, the call is jumped over; without one, to the next instruction.
        let (over, skip) = match guard {
            Some(guard) => (end, Some(Pred { negated: !guard.negated, ..guard })),
            None => (self.code.len() + 1, None),
        };
        self.push(statement, Op::Branch(over), skip);
        self.calls.push(&function.name);
        self.slots.open();
        for (name, symbol) in bound {
            self.slots.define(name, Name::Variable(symbol));
        }
        self.items(&function.body, Some(end))?;
        self.slots.close();
        self.calls.pop();
        Ok(())
    }

    /// The function's names of its results and parameters, and the caller's variables.
    fn arguments(&self, statement: &Statement, function: &Function) -> Lowered<Vec<(String, Symbol)>> {
        let (results, rest) = match statement.operands.as_slice() {
            [Operand::Vector(results), Operand::Name(_), rest @ ..] => (results.as_slice(), rest),
            [Operand::Name(_), rest @ ..] => (&[][..], rest),
            _ => return Err("this form of a call is not supported".to_string()),
        };
        let arguments = match rest {
            [] => &[][..],
            [Operand::Vector(arguments)] => arguments.as_slice(),
            _ => return Err("this form of a call is not supported".to_string()),
        };
        let mut bound = vec![];
        for (actual, formal) in [(results, &function.results), (arguments, &function.params)] {
            if actual.len() != formal.len() {
                return Err(format!("{} values where {} has {}", actual.len(), function.name, formal.len()));
            }
            for (operand, variable) in actual.iter().zip(formal) {
                bound.push((variable.name.clone(), self.argument(operand, variable)?));
            }
        }
        Ok(bound)
    }

    fn argument(&self, operand: &Operand, formal: &Variable) -> Lowered<Symbol> {
        let Operand::Name(name) = operand else {
            return Err("only .param variables can be passed to a function".to_string());
        };
        match self.slots.find(name) {
            Some(Name::Variable(symbol)) if symbol.space == crate::Space::Local => Ok(symbol),
            _ => Err(format!("{name}, passed as {}, is not a .param variable", formal.name)),
        }
    }
}

/// The error about a statement, from its reason.
fn wrong<'a>(kernel: &'a str, statement: &'a Statement) -> impl Fn(String) -> Error + Copy + 'a {
    move |reason| Error::Unsupported {
        kernel: kernel.to_string(),
        line: statement.line,
        text: statement.to_string(),
        reason,
    }
}

/// The predicate of `@p` or `@!p`.
fn guard(slots: &Slots, statement: &Statement) -> Lowered<Option<Pred>> {
    match &statement.guard {
        None => Ok(None),
        Some((name, negated)) => match slots.find(name) {
            Some(Name::Predicate(slot)) => Ok(Some(Pred { slot, negated: *negated })),
            _ => Err(format!("{name} is not a predicate")),
        },
    }
}
