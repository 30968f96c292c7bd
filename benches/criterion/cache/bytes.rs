//! Bytes as criterion's measurement, in place of seconds.

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter};

use super::count;

/// What is measured: bytes taken from the allocator and not given back.
pub struct Bytes;

impl Measurement for Bytes {
    type Intermediate = ();
    type Value = f64;

    fn start(&self) {
        count::begin();
    }

    fn end(&self, (): ()) -> f64 {
        count::end().kept as f64
    }

    fn add(&self, one: &f64, other: &f64) -> f64 {
        one + other
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Binary
    }
}

/// In B, KiB, MiB, ...
struct Binary;

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
const UNITS_PER_TOKEN: [&str; 5] = ["B/token", "KiB/token", "MiB/token", "GiB/token", "TiB/token"];

/// The number of the unit in which a value is at least 1, and its size.
fn unit(bytes: f64) -> (usize, f64) {
    let index = (1..UNITS.len()).take_while(|&index| bytes >= 1024_f64.powi(index as i32)).last().unwrap_or(0);
    (index, 1024_f64.powi(index as i32))
}

/// For tables: 1536 as `1.50 KiB`.
pub fn human(bytes: f64) -> String {
    let (index, size) = unit(bytes);
    let scaled = bytes / size;
    let digits = match scaled {
        _ if index == 0 => 0,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$} {}", UNITS[index])
}

impl ValueFormatter for Binary {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        let (index, size) = unit(typical);
        values.iter_mut().for_each(|value| *value /= size);
        UNITS[index]
    }

    fn scale_throughputs(&self, typical: f64, work: &Throughput, values: &mut [f64]) -> &'static str {
        // Of a cache: elements are tokens.
        let Throughput::Elements(tokens) = *work else { return self.scale_values(typical, values) };
        let (index, size) = unit(typical / tokens as f64);
        values.iter_mut().for_each(|value| *value /= tokens as f64 * size);
        UNITS_PER_TOKEN[index]
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "B"
    }
}
