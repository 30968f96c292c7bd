//! As much of Python's pickle as `torch.save` needs for tensors in dictionaries, lists and tuples.
//!
//! A pickle is a program for a machine with a stack. This one knows the instructions that make numbers, texts, tuples, lists and
//! dictionaries, and four functions by their names: `OrderedDict`, and the three that put a tensor or a parameter together. They
//! are not called; what they would make is noted. Any other name is refused, so no code of the file is ever run.
//!
//! Objects lie in one list and refer to each other by their places, so that no structure, however deep or however often it
//! contains itself, takes more than the instructions that made it.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Refusal;
use crate::error::one_line;

/// How many objects a pickle may make.
const MOST: usize = 1_000_000;

/// How long the name of a type or of a storage may be. It is kept once for each tensor, but may be in the file once for all.
const LONGEST: usize = 100;

/// How many axes a tensor may have; PyTorch's have at most 64.
const AXES: usize = 64;

/// What has no place on the stack of its own.
#[derive(Clone, Copy, Debug)]
pub enum Item<'a> {
    /// None, a truth value, a fraction, bytes: of no interest.
    Other,
    /// A whole number.
    Int(i64),
    /// A text.
    Text(&'a str),
    /// A function or a class, by its name.
    Global(&'a str, &'a str),
    /// An object, by its place.
    Object(usize),
}

/// An object.
#[derive(Debug)]
enum Object<'a> {
    Sequence(Vec<Item<'a>>),
    Dict(Vec<(Item<'a>, Item<'a>)>),
    Storage { dtype: String, key: &'a str },
    Tensor(Stored),
}

/// A tensor, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The name of its storage's class, or of its dtype.
    pub dtype: String,
    /// The name of the storage.
    pub storage: String,
    /// Where its first element is.
    pub offset: usize,
    /// The lengths of its axes.
    pub shape: Vec<usize>,
    /// How far apart neighbours along each axis are.
    pub strides: Vec<usize>,
}

/// What a pickle makes.
#[derive(Debug)]
pub struct Built<'a> {
    objects: Vec<Object<'a>>,
    root: Item<'a>,
}

impl<'a> Built<'a> {
    /// The whole.
    pub fn root(&self) -> Item<'a> {
        self.root
    }

    /// The tensor that an item is.
    pub fn tensor(&self, item: Item<'_>) -> Option<&Stored> {
        let Item::Object(place) = item else { return None };
        let Object::Tensor(stored) = &self.objects[place] else { return None };
        Some(stored)
    }

    /// What a dictionary or a list holds, by key or place.
    pub fn inside(&self, item: Item<'_>) -> impl Iterator<Item = (Cow<'a, str>, Item<'a>)> {
        let object = if let Item::Object(place) = item { self.objects.get(place) } else { None };
        let (list, dict) = match object {
            Some(Object::Sequence(items)) => (&items[..], &[][..]),
            Some(Object::Dict(items)) => (&[][..], &items[..]),
            _ => (&[][..], &[][..]),
        };
        let listed = list.iter().enumerate().map(|(i, item)| (i.to_string().into(), *item));
        listed.chain(dict.iter().filter_map(|(key, item)| Some((key.key()?, *item))))
    }
}

impl<'a> Item<'a> {
    fn key(self) -> Option<Cow<'a, str>> {
        match self {
            Item::Int(number) => Some(number.to_string().into()),
            Item::Text(text) => Some(text.into()),
            _ => None,
        }
    }
}

/// Follows a pickle.
///
/// # Errors
/// If it does anything else than to put tensors together.
pub fn read(bytes: &[u8]) -> Result<Built<'_>, Refusal> {
    let mut machine =
        Machine { left: bytes, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), objects: Vec::new() };
    loop {
        if let Some(root) = machine.step()? {
            return Ok(Built { objects: machine.objects, root });
        }
        if machine.objects.len() + machine.stack.len() + machine.marks.len() + machine.memo.len() > MOST {
            return Err(Refusal::new(format!("a pickle of at most {MOST} objects"), "one of more"));
        }
    }
}

struct Machine<'a> {
    /// The instructions to come.
    left: &'a [u8],
    stack: Vec<Item<'a>>,
    /// How high the stack was at each mark.
    marks: Vec<usize>,
    /// What was put aside, by number.
    memo: HashMap<usize, Item<'a>>,
    objects: Vec<Object<'a>>,
}

fn damaged(found: impl ToString) -> Refusal {
    Refusal::new("a pickle in good order", found)
}

fn only_tensors(found: impl ToString) -> Refusal {
    Refusal::new("tensors only, in dictionaries and lists (of a pickle nothing is run)", found)
}

impl<'a> Machine<'a> {
    /// One instruction. The last one gives the whole.
    fn step(&mut self) -> Result<Option<Item<'a>>, Refusal> {
        let [instruction] = self.bytes()?;
        match instruction {
            b'.' => return self.pop().map(Some),
            // PROTO, FRAME
            0x80 => drop(self.bytes::<1>()?),
            0x95 => drop(self.bytes::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            // NONE, NEWTRUE, NEWFALSE, BINFLOAT, SHORT_BINBYTES, BINBYTES
            b'N' | 0x88 | 0x89 => self.stack.push(Item::Other),
            b'G' => {
                self.bytes::<8>()?;
                self.stack.push(Item::Other);
            }
            b'C' | b'B' => {
                let length = if instruction == b'C' { self.u8()? } else { self.u32()? };
                self.slice(length)?;
                self.stack.push(Item::Other);
            }
            b'J' => {
                let number = i32::from_le_bytes(self.bytes()?);
                self.stack.push(Item::Int(number.into()));
            }
            b'K' => self.whole(Self::u8)?,
            b'M' => self.whole(|machine| Ok(u16::from_le_bytes(machine.bytes()?).into()))?,
            // LONG1
            0x8a => {
                let length = self.u8()?;
                let number = long(self.slice(length)?).ok_or_else(|| damaged("a number of more than 64 bits"))?;
                self.stack.push(Item::Int(number));
            }
            // SHORT_BINUNICODE, BINUNICODE
            0x8c => self.text(Self::u8)?,
            b'X' => self.text(Self::u32)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            // STACK_GLOBAL
            0x93 => match (self.pop()?, self.pop()?) {
                (Item::Text(name), Item::Text(module)) => self.global(module, name)?,
                _ => return Err(damaged("a name that is no text")),
            },
            b']' | b')' => self.push_object(Object::Sequence(Vec::new())),
            b'}' => self.push_object(Object::Dict(Vec::new())),
            b't' | b'l' => {
                let items = self.since_mark()?;
                self.push_object(Object::Sequence(items));
            }
            // TUPLE1, TUPLE2, TUPLE3
            0x85..=0x87 => {
                let first = self.stack.len().checked_sub(usize::from(instruction - 0x84)).ok_or_else(underflow)?;
                let items = self.stack.split_off(first);
                self.push_object(Object::Sequence(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(items)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let place = self.u8()?;
                self.memoize(place)?;
            }
            b'r' => {
                let place = self.u32()?;
                self.memoize(place)?;
            }
            0x94 => self.memoize(self.memo.len())?,
            b'h' => {
                let place = self.u8()?;
                self.recall(place)?;
            }
            b'j' => {
                let place = self.u32()?;
                self.recall(place)?;
            }
            // BINPERSID
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id).ok_or_else(|| only_tensors("another reference than to a storage"))?;
                self.push_object(storage);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = self.call(function, arguments)?;
                self.stack.push(made);
            }
            // BUILD: attributes of a state_dict, such as its _metadata
            b'b' => drop(self.pop()?),
            other => return Err(only_tensors(format!("the instruction 0x{other:02x} in the pickle"))),
        }
        Ok(None)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (slice, left) = self.left.split_at_checked(length).ok_or_else(|| damaged("an early end"))?;
        self.left = left;
        Ok(slice)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let slice = self.slice(N)?;
        slice.try_into().map_err(|_| damaged("an early end"))
    }

    fn u8(&mut self) -> Result<usize, Refusal> {
        self.bytes().map(|[byte]| byte.into())
    }

    fn u32(&mut self) -> Result<usize, Refusal> {
        Ok(u32::from_le_bytes(self.bytes()?) as usize)
    }

    fn whole(&mut self, number: impl Fn(&mut Self) -> Result<usize, Refusal>) -> Result<(), Refusal> {
        let number = number(self)?;
        self.stack.push(Item::Int(number as i64));
        Ok(())
    }

    fn text(&mut self, length: impl Fn(&mut Self) -> Result<usize, Refusal>) -> Result<(), Refusal> {
        let length = length(self)?;
        let text = std::str::from_utf8(self.slice(length)?).map_err(|_| damaged("a text that is no UTF-8"))?;
        self.stack.push(Item::Text(text));
        Ok(())
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Result<&'a str, Refusal> {
        let end = self.left.iter().position(|&byte| byte == b'\n').ok_or_else(|| damaged("an early end"))?;
        let line = std::str::from_utf8(self.slice(end)?).map_err(|_| damaged("a name that is no UTF-8"))?;
        self.slice(1)?;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Item<'a>, Refusal> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(underflow),
            false => Err(underflow()),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Item<'a>>, Refusal> {
        let mark = self.marks.pop().ok_or_else(|| damaged("no mark"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn push_object(&mut self, object: Object<'a>) {
        self.stack.push(Item::Object(self.objects.len()));
        self.objects.push(object);
    }

    fn append(&mut self, items: Vec<Item<'a>>) -> Result<(), Refusal> {
        match self.top()? {
            Object::Sequence(list) => list.extend(items),
            _ => return Err(damaged("something appended to what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Item<'a>>) -> Result<(), Refusal> {
        match self.top()? {
            Object::Dict(dict) => dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => return Err(damaged("a key set in what is no dictionary")),
        }
        Ok(())
    }

    fn top(&mut self) -> Result<&mut Object<'a>, Refusal> {
        match self.stack.last() {
            Some(&Item::Object(place)) => Ok(&mut self.objects[place]),
            _ => Err(underflow()),
        }
    }

    fn memoize(&mut self, place: usize) -> Result<(), Refusal> {
        let item = *self.stack.last().ok_or_else(underflow)?;
        self.memo.insert(place, item);
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<(), Refusal> {
        let item = self.memo.get(&place).copied();
        self.stack.push(item.ok_or_else(|| damaged("a number of the memo that was never set"))?);
        Ok(())
    }

    /// Takes note of a name, if it is one of a tensor's.
    fn global(&mut self, module: &'a str, name: &'a str) -> Result<(), Refusal> {
        let known = match module {
            "collections" => name == "OrderedDict",
            "torch._utils" => matches!(name, "_rebuild_tensor_v2" | "_rebuild_tensor_v3" | "_rebuild_parameter"),
            "torch.storage" => name == "UntypedStorage",
            "torch" => true,
            _ => false,
        };
        if !known || name.len() > LONGEST {
            return Err(only_tensors(format!("`{}.{}` in the pickle", one_line(module), one_line(name))));
        }
        self.stack.push(Item::Global(module, name));
        Ok(())
    }

    fn sequence(&self, item: Item<'a>) -> Option<&[Item<'a>]> {
        let Item::Object(place) = item else { return None };
        let Object::Sequence(items) = &self.objects[place] else { return None };
        Some(items)
    }

    /// `('storage', torch.FloatStorage, '0', 'cpu', 12)`
    fn storage(&self, id: Item<'a>) -> Option<Object<'a>> {
        match self.sequence(id)? {
            [Item::Text("storage"), Item::Global(module, class), Item::Text(key), ..] if key.len() <= LONGEST => {
                Some(Object::Storage { dtype: format!("{module}.{class}"), key })
            }
            _ => None,
        }
    }

    /// What a function would make of its arguments.
    fn call(&mut self, function: Item<'a>, arguments: Item<'a>) -> Result<Item<'a>, Refusal> {
        let Item::Global(module, name) = function else { return Err(damaged("a call of what is no function")) };
        let arguments = self.sequence(arguments).ok_or_else(|| damaged("a call without arguments"))?;
        let impossible = || damaged(format!("impossible arguments of {name}"));
        let made = match (name, arguments) {
            ("OrderedDict", []) => Object::Dict(Vec::new()),
            ("_rebuild_parameter", [data, ..]) => return Ok(*data),
            ("_rebuild_tensor_v2" | "_rebuild_tensor_v3", [storage, offset, shape, strides, rest @ ..]) => {
                let dtype = match (name, rest) {
                    ("_rebuild_tensor_v2", _) => None,
                    (_, [_, _, Item::Global(module, dtype), ..]) => Some(format!("{module}.{dtype}")),
                    _ => return Err(impossible()),
                };
                let stored = self.stored(*storage, *offset, *shape, *strides, dtype);
                Object::Tensor(stored.ok_or_else(impossible)?)
            }
            _ => {
                return Err(only_tensors(format!("a call of `{}.{}` in the pickle", one_line(module), one_line(name))));
            }
        };
        self.objects.push(made);
        Ok(Item::Object(self.objects.len() - 1))
    }

    fn stored(
        &self,
        storage: Item<'a>,
        offset: Item<'a>,
        shape: Item<'a>,
        strides: Item<'a>,
        dtype: Option<String>,
    ) -> Option<Stored> {
        let Item::Object(place) = storage else { return None };
        let Object::Storage { dtype: class, key } = &self.objects[place] else { return None };
        let number = |item: &Item<'a>| if let Item::Int(n) = item { usize::try_from(*n).ok() } else { None };
        let numbers = |item| {
            let items = self.sequence(item).filter(|items| items.len() <= AXES)?;
            items.iter().map(number).collect::<Option<Vec<_>>>()
        };
        Some(Stored {
            dtype: dtype.unwrap_or_else(|| class.clone()),
            storage: (*key).to_owned(),
            offset: number(&offset)?,
            shape: numbers(shape)?,
            strides: numbers(strides)?,
        })
    }
}

fn underflow() -> Refusal {
    damaged("something taken from an empty stack")
}

/// A whole number of any length, least byte first, negative if its highest bit is set.
fn long(bytes: &[u8]) -> Option<i64> {
    if bytes.len() > 8 {
        return None;
    }
    let sign = if bytes.last().is_some_and(|&highest| highest & 0x80 != 0) { 0xff } else { 0 };
    let mut all = [sign; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted() {
        let many = [vec![b'N'; MOST + 1], vec![b'.']].concat();
        assert_eq!(read(&many).unwrap_err().found, "one of more");
        assert!(read(&many[2..]).is_ok());
    }

    #[test]
    fn whole_numbers_have_any_length_up_to_64_bits() {
        assert_eq!(long(&[]), Some(0));
        assert_eq!(long(&[0xff]), Some(-1));
        assert_eq!(long(&[0xff, 0]), Some(255));
        assert_eq!(long(&i64::MIN.to_le_bytes()), Some(i64::MIN));
        assert_eq!(long(&[0; 9]), None);
    }
}
