//! `vprintf` and `__assertfail`, as a driver does them. What is printed is part of the launch's report.

use super::block::{Block, Failed};
use super::registers::lanes;
use super::view::Request;
use crate::error::Cause;
use crate::lower::instruction::System;
use crate::{Error, Space};

/// The longest text that is read from memory.
const LONGEST: usize = 4096;

impl Block<'_> {
    /// A call of some lanes, lane after lane.
    pub(super) fn system(
        &mut self,
        (warp, pc): (usize, usize),
        mask: u32,
        system: System,
        result: Option<u64>,
        arguments: &[u64],
    ) -> Result<(), Error> {
        for lane in lanes(mask) {
            let outcome = match system {
                System::Print => self.print(warp, lane, arguments),
                System::Assert => self.assertion(warp, lane, arguments).and_then(|cause| Err((lane, cause))),
            };
            let written = outcome.map_err(|failed| self.fault(warp, pc, failed))?;
            if let Some(at) = result {
                let request = Request { space: Space::Local, bytes: 4, writes: true, reads: false };
                let spot = self.view(warp).locate(request, lane, at).map_err(|failed| self.fault(warp, pc, failed))?;
                spot.store.store(spot.offset, 4, u64::from(written));
            }
        }
        Ok(())
    }

    /// A number of `bytes` bytes.
    fn word(&self, warp: usize, lane: usize, (space, address): (Space, u64), bytes: u32) -> Result<u64, Failed> {
        let request = Request { space, bytes, writes: false, reads: true };
        let spot = self.view(warp).locate(request, lane, address)?;
        Ok(spot.store.load(spot.offset, bytes))
    }

    /// A text that ends with a zero.
    fn text(&self, warp: usize, lane: usize, address: u64) -> Result<String, Failed> {
        let mut bytes = vec![];
        while bytes.len() < LONGEST {
            match self.word(warp, lane, (Space::Generic, address + bytes.len() as u64), 1)? {
                0 => break,
                byte => bytes.push(byte as u8),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn assertion(&self, warp: usize, lane: usize, arguments: &[u64]) -> Result<Cause, Failed> {
        let text = |index: usize| {
            let pointer = self.word(warp, lane, (Space::Local, arguments[index]), 8)?;
            self.text(warp, lane, pointer)
        };
        let (condition, file, function) = (text(0)?, text(1)?, text(3)?);
        let line = self.word(warp, lane, (Space::Local, arguments[2]), 4)? as u32;
        Ok(Cause::Assertion { condition, file, line, function })
    }

    /// How many arguments were printed.
    fn print(&mut self, warp: usize, lane: usize, arguments: &[u64]) -> Result<u32, Failed> {
        let format = self.word(warp, lane, (Space::Local, arguments[0]), 8)?;
        let list = self.word(warp, lane, (Space::Local, arguments[1]), 8)?;
        let format = self.text(warp, lane, format)?;
        let (mut out, mut rest, mut at, mut count) = (String::new(), format.as_str(), list, 0);
        while let Some(start) = rest.find('%') {
            out.push_str(&rest[..start]);
            let Some(length) =
                rest[start + 1..].find(|c: char| c.is_ascii_alphabetic() && !"hlLqjzt".contains(c) || c == '%')
            else {
                rest = &rest[start..];
                break;
            };
            let directive = &rest[start + 1..=start + 1 + length];
            rest = &rest[start + 2 + length..];
            let kind = directive.chars().last().unwrap_or('%');
            if kind == '%' {
                out.push('%');
                continue;
            }
            let flags = &directive[..directive.len() - 1];
            let wide = "feEgGaAps".contains(kind) || flags.contains("ll") || flags.ends_with(['l', 'j', 'z', 't']);
            let size = if wide { 8 } else { 4 };
            at = at.next_multiple_of(u64::from(size));
            let value = self.word(warp, lane, (Space::Generic, at), size)?;
            at += u64::from(size);
            count += 1;
            let text = if kind == 's' { Some(self.text(warp, lane, value)?) } else { None };
            out.push_str(&formatted(flags, kind, value, size, text));
        }
        out.push_str(rest);
        self.log.printed.push((self.id, out));
        Ok(count)
    }
}

/// One argument, as C's `printf` shows it, with its flags, width and precision.
fn formatted(flags: &str, kind: char, value: u64, size: u32, text: Option<String>) -> String {
    let flags = flags.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let digits = |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<usize>().ok();
    let marks: String = flags.chars().take_while(|c| "-+ #0".contains(*c)).collect();
    let width = digits(&flags[marks.len()..]).unwrap_or(0).min(LONGEST);
    let precision = flags.split_once('.').map(|(_, digits_of)| digits(digits_of).unwrap_or(0).min(LONGEST));
    let signed = if size == 8 { value as i64 } else { i64::from(value as u32 as i32) };
    let float = f64::from_bits(value);
    let places = precision.unwrap_or(6);
    let body = match kind {
        'd' | 'i' => signed.unsigned_abs().to_string(),
        'u' => value.to_string(),
        'x' => format!("{value:x}"),
        'X' => format!("{value:X}"),
        'o' => format!("{value:o}"),
        'p' => format!("{value:#x}"),
        'c' => char::from(value as u8).to_string(),
        's' => text.unwrap_or_default().chars().take(precision.unwrap_or(usize::MAX)).collect(),
        _ if float.is_nan() => "nan".to_string(),
        _ if float.is_infinite() => "inf".to_string(),
        'e' | 'E' => exponential(float.abs(), places, kind),
        'g' | 'G' => {
            let significant = places.max(1);
            let exponent = if float == 0.0 { 0 } else { exponent_of(float.abs(), significant - 1) };
            let trim = |text: String| {
                if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
            };
            if exponent < -4 || exponent >= significant as i32 {
                let text = exponential(float.abs(), significant - 1, if kind == 'g' { 'e' } else { 'E' });
                let at = text.find(['e', 'E']).unwrap_or(text.len());
                trim(text[..at].to_string()) + &text[at..]
            } else {
                trim(format!("{:.*}", (significant as i32 - 1 - exponent).max(0) as usize, float.abs()))
            }
        }
        _ => format!("{:.places$}", float.abs()),
    };
    let negative = match kind {
        'd' | 'i' => signed < 0,
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => float.is_sign_negative() && !float.is_nan(),
        _ => false,
    };
    let sign = match (negative, marks.contains('+')) {
        (true, _) => "-",
        (false, true) if "dieEfFgG".contains(kind) => "+",
        _ => "",
    };
    let fill = width.saturating_sub(sign.len() + body.chars().count());
    match (marks.contains('-'), marks.contains('0')) {
        (true, _) => format!("{sign}{body}{}", " ".repeat(fill)),
        (false, true) => format!("{sign}{}{body}", "0".repeat(fill)),
        (false, false) => format!("{}{sign}{body}", " ".repeat(fill)),
    }
}

/// The decimal exponent of a number that is rounded to so many digits behind the first.
fn exponent_of(value: f64, places: usize) -> i32 {
    let text = format!("{value:.places$e}");
    text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0)
}

/// `1.500000e+03`
fn exponential(value: f64, places: usize, mark: char) -> String {
    let text = format!("{value:.places$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}{mark}{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}
