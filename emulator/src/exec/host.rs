//! Calls of what the driver provides: `vprintf` and `__assertfail` (CUDA C++ programming guide, "Formatted Output" and
//! "Assertion").

use std::sync::{Mutex, PoisonError};

use super::block::{Block, Failed};
use super::registers::lanes;
use super::specials;
use super::view::{Request, View};
use crate::error::Cause;
use crate::lower::instruction::{Function, Host};
use crate::observe::Observer;
use crate::{Error, Space};

/// As many calls of a launch are kept.
const KEPT: usize = 1 << 16;

/// A text is cut off here.
const LONGEST: usize = 1 << 12;

/// One call of `printf` by one thread.
#[derive(Clone, Debug, PartialEq)]
pub struct Printed {
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// `%tid` of the thread.
    pub thread: [u32; 3],
    /// The format as C has it. Its values follow; widths and precisions given by `*` are values as well.
    pub format: String,
    /// The values, in order.
    pub values: Vec<Value>,
}

/// A value that is printed.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of `%d` and `%i`.
    Signed(i64),
    /// Of `%u`, `%x`, `%o`, `%c` and `%p`.
    Unsigned(u64),
    /// Of `%f`, `%e`, `%g` and `%a`.
    Float(f64),
    /// Of `%s`.
    Text(String),
}

/// What was printed, each call with the number of its block.
pub(crate) type Prints = Mutex<Vec<(u64, Printed)>>;

impl<O: Observer> Block<'_, O> {
    /// `call vprintf` or `call __assertfail`, lane by lane.
    pub(super) fn host(&mut self, warp: usize, pc: usize, mask: u32, host: &Host) -> Result<(), Error> {
        let [x, y, z] = self.id.map(u64::from);
        let [width, height, _] = self.launch.grid.map(u64::from);
        let number = (z * height + y) * width + x;
        let mut texts = vec![];
        let (view, _) = self.split(warp);
        let outcome = lanes(mask).try_for_each(|lane| match host.function {
            Function::Print => {
                let format = text(&view, lane, argument(&view, lane, host, 0)?)?;
                let at = argument(&view, lane, host, 1)?;
                let values = values(&view, lane, &format, at)?;
                let result = view.locate(local(4, true), lane, host.result)?;
                result.store.store(result.offset, 4, values.len() as u64);
                texts.push((lane, format, values));
                Ok(())
            }
            Function::Assert => {
                let [message, file, function] =
                    [0, 1, 3].map(|index| argument(&view, lane, host, index).and_then(|at| text(&view, lane, at)));
                let spot = view.locate(local(4, false), lane, host.arguments[2])?;
                let line = spot.store.load(spot.offset, 4) as u32;
                Err((lane, Cause::Assertion { message: message?, file: file?, line, function: function? }))
            }
        });
        let mut log = self.launch.printed.lock().unwrap_or_else(PoisonError::into_inner);
        for (lane, format, values) in texts {
            if log.len() < KEPT {
                let thread = specials::thread(self.launch.block, (warp * 32 + lane) as u32);
                log.push((number, Printed { block: self.id, thread, format, values }));
            }
        }
        drop(log);
        outcome.map_err(|failed| self.fault(warp, pc, failed))
    }
}

fn local(bytes: u32, writes: bool) -> Request {
    Request { space: Space::Local, bytes, writes, reads: !writes }
}

/// A pointer among the arguments of the call, which are variables of the thread.
fn argument(view: &View<'_>, lane: usize, host: &Host, index: usize) -> Result<u64, Failed> {
    let spot = view.locate(local(8, false), lane, host.arguments[index])?;
    Ok(spot.store.load(spot.offset, 8))
}

fn load(view: &View<'_>, lane: usize, address: u64, bytes: u32) -> Result<u64, Failed> {
    let request = Request { space: Space::Generic, bytes, writes: false, reads: true };
    view.locate(request, lane, address).map(|spot| spot.store.load(spot.offset, bytes))
}

/// The text at an address, up to its NUL.
fn text(view: &View<'_>, lane: usize, address: u64) -> Result<String, Failed> {
    let mut bytes = vec![];
    while bytes.len() < LONGEST {
        match load(view, lane, address.wrapping_add(bytes.len() as u64), 1)? as u8 {
            0 => break,
            byte => bytes.push(byte),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The values that a format wants, from a list at an address: each aligned to its size.
fn values(view: &View<'_>, lane: usize, format: &str, list: u64) -> Result<Vec<Value>, Failed> {
    let mut at = list;
    let mut next = |bytes: u32| {
        at = at.next_multiple_of(u64::from(bytes));
        let value = load(view, lane, at, bytes);
        at += u64::from(bytes);
        value
    };
    let mut out = vec![];
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            continue;
        }
        let mut long = false;
        for letter in letters.by_ref() {
            let bytes = if long { 8 } else { 4 };
            match letter {
                '*' => out.push(Value::Signed(i64::from(next(4)? as i32))),
                'l' | 'j' | 'z' | 't' => long = true,
                'd' | 'i' if long => out.push(Value::Signed(next(8)? as i64)),
                'd' | 'i' => out.push(Value::Signed(i64::from(next(4)? as i32))),
                'u' | 'x' | 'X' | 'o' => out.push(Value::Unsigned(next(bytes)?)),
                'c' => out.push(Value::Unsigned(next(4)? & 0xff)),
                'p' => out.push(Value::Unsigned(next(8)?)),
                'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A' => out.push(Value::Float(f64::from_bits(next(8)?))),
                's' => {
                    let address = next(8)?;
                    out.push(Value::Text(text(view, lane, address)?));
                }
                '0'..='9' | '.' | '-' | '+' | ' ' | '#' | 'h' => continue,
                // `%%`, and what no format has.
                _ => {}
            }
            if !matches!(letter, '*' | 'l' | 'j' | 'z' | 't') {
                break;
            }
        }
    }
    Ok(out)
}
