//! The body of a kernel, item by item, and the bodies of the functions it calls.
//!
//! A call is lowered in place: the function's body is put where the call stands, its parameters are the caller's
//! variables, and `ret` is a branch behind it. So a kernel stays one list of instructions. A call through a pointer
//! becomes a chain of comparisons with the functions whose address somebody takes and whose parameters fit, each in
//! place. Recursion cannot be done in this way; compilers emit it rarely.

use super::case::{Case, Lowered};
use super::flow::{Cell, Flow};
use super::instruction::{Instruction, Op};
use super::slots::{Name, Slots, Symbol};
use super::{function_address, operation};
use crate::Error;
use crate::exec::lanes::{bits_where, predicate};
use crate::exec::registers::Pred;
use crate::parse::ast::{Ast, Function, Item, Operand, Prototype, Statement, Variable};
use crate::parse::types::Type;

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
    /// The functions whose address is taken somewhere in the module.
    pub(super) taken: Vec<usize>,
}

/// The functions whose address is taken somewhere in a module.
pub(super) fn taken(ast: &Ast) -> Vec<usize> {
    let named = |name: &str| {
        let initial = ast.variables.iter().flat_map(|variable| &variable.addresses);
        let bodies = ast.entries.iter().map(|entry| &entry.body).chain(ast.functions.iter().map(|f| &f.body));
        let mut statements = bodies.flatten().filter_map(|item| match item {
            Item::Statement(statement) if !statement.opcode.starts_with("call") => Some(statement),
            _ => None,
        });
        initial.into_iter().any(|(_, reference)| reference.name == name)
            || statements.any(|s| s.operands.iter().any(|o| matches!(o, Operand::Name(other) if other == name)))
    };
    (0..ast.functions.len()).filter(|index| named(&ast.functions[*index].name)).collect()
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
                Item::Targets(name, labels) => self.slots.define(name.clone(), Name::Targets(labels.clone())),
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
        if depth > self.ast.functions.len() {
            return 1;
        }
        let whole = |function: &Function| {
            function.body.iter().fold(0, |sum: usize, item| match item {
                Item::Statement(inner) if sum <= MAX_CODE => sum + self.size(inner, depth + 1),
                _ => sum,
            })
        };
        if let Some(function) = self.callee(statement) {
            return 1 + whole(function);
        }
        let Some(prototype) = &statement.prototype else { return 1 };
        // The jump over all; for each function a comparison, a jump to the next, the call, a jump to the end; the fault.
        let candidates = self.candidates(prototype);
        candidates.iter().fold(2, |sum: usize, function| sum.saturating_add(3 + whole(function)).min(2 * MAX_CODE))
    }

    /// The functions that a call through a pointer may mean: those that look as its prototype says.
    fn candidates(&self, prototype: &Prototype) -> Vec<&'a Function> {
        let sizes = |variables: &[Variable]| variables.iter().map(|v| v.bytes).collect::<Vec<_>>();
        let functions = self.taken.iter().map(|index| &self.ast.functions[*index]);
        functions.filter(|f| sizes(&f.results) == prototype.results && sizes(&f.params) == prototype.params).collect()
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
        if let Some(prototype) = &statement.prototype {
            return self.call_through_pointer(statement, prototype, guard);
        }
        let (op, flow) = match end {
            Some(end) if matches!(statement.opcode.as_str(), "ret" | "ret.uni") => (Op::Branch(end), Flow::default()),
            _ => {
                let mut case = Case::new(&mut self.slots, self.ast, statement);
                let op = operation(&mut case).map_err(wrong)?;
                case.settle_rule();
                (op, case.flow)
            }
        };
        self.push(statement, op, guard, flow);
        Ok(())
    }

    fn push(&mut self, statement: &Statement, op: Op, guard: Option<Pred>, flow: Flow) {
        let opcode = statement.opcode.as_str().into();
        let flow = Box::new(flow);
        self.code.push(Instruction { op, guard, opcode, line: statement.line, source: statement.source, flow });
    }

    /// A jump over a call where its guard does not hold; without one, to the next instruction.
    fn jump_over(&mut self, statement: &Statement, guard: Option<Pred>, end: usize) {
        let (over, skip) = match guard {
            Some(guard) => (end, Some(Pred { negated: !guard.negated, ..guard })),
            None => (self.code.len() + 1, None),
        };
        self.push(statement, Op::Branch(over), skip, Flow::default());
    }

    /// `call{.uni} {(results),} name{, (arguments)}`
    fn call(&mut self, statement: &'a Statement, function: &'a Function, guard: Option<Pred>) -> Result<(), Error> {
        let end = self.code.len() + self.size(statement, 0);
        self.jump_over(statement, guard, end);
        self.inline(statement, function, end)
    }

    /// `call{.uni} {(results),} register{, (arguments)}, prototype`
    fn call_through_pointer(
        &mut self,
        statement: &'a Statement,
        prototype: &Prototype,
        guard: Option<Pred>,
    ) -> Result<(), Error> {
        let wrong = wrong(self.kernel, statement);
        let name = statement.operands.iter().find(|operand| matches!(operand, Operand::Name(_)));
        let mut case = Case::new(&mut self.slots, self.ast, statement);
        let pointer = name.ok_or("no function is named".to_string()).and_then(|name| case.value(name, Type::B64));
        let pointer = pointer.map_err(wrong)?;
        if pointer.bits != 64 {
            return Err(wrong("a pointer to a function has 64 bits".to_string()));
        }
        let end = self.code.len() + self.size(statement, 0);
        self.jump_over(statement, guard, end);
        for function in self.candidates(prototype) {
            let address = function_address(self.ast, &function.name).unwrap_or(0);
            let hit = self.slots.fresh_predicate();
            let is_it =
                predicate(hit, move |registers| bits_where(registers.get(pointer.slot), |at: u64| at == address));
            let flow = Flow { reads: vec![Cell::Data(pointer)], writes: vec![Cell::Predicate(hit)], ..Flow::default() };
            self.push(statement, Op::Lanes(is_it), None, flow);
            let size = self.size_of_body(function);
            let (body_end, next) = (self.code.len() + 1 + size, self.code.len() + 2 + size);
            self.push(statement, Op::Branch(next), Some(Pred { slot: hit, negated: true }), Flow::default());
            self.inline(statement, function, body_end)?;
            self.push(statement, Op::Branch(end), None, Flow::default());
        }
        self.push(statement, Op::NoFunction(pointer), None, Flow::default());
        Ok(())
    }

    /// How many instructions the body of a function becomes.
    fn size_of_body(&self, function: &Function) -> usize {
        function.body.iter().fold(0, |sum: usize, item| match item {
            Item::Statement(inner) if sum <= MAX_CODE => sum + self.size(inner, 1),
            _ => sum,
        })
    }

    /// The body of a function where it is called; its `ret` goes to `end`.
    fn inline(&mut self, statement: &'a Statement, function: &'a Function, end: usize) -> Result<(), Error> {
        let wrong = wrong(self.kernel, statement);
        if self.calls.contains(&function.name.as_str()) {
            return Err(wrong("recursion is not supported".to_string()));
        }
        let bound = self.arguments(statement, function).map_err(wrong)?;
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
        let operands = statement.operands.as_slice();
        // Behind all stands the prototype of a call through a pointer.
        let operands = if statement.prototype.is_some() { &operands[..operands.len() - 1] } else { operands };
        let (results, rest) = match operands {
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
