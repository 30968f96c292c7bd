//! The plan as text: a column for each split.

use std::fmt;

use comfy_table::Cell;

use super::{DevicePlan, Impossible, Split, WeightFormat};
use crate::table::{align_right, table};

/// In units of 10^9 bytes, rounded up: who has as much has enough.
fn gigabytes(bytes: u64) -> String {
    thousandths(bytes.div_ceil(1_000_000))
}

fn thousandths(count: u64) -> String {
    format!("{}.{:03}", count / 1000, count % 1000)
}

fn exact(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn sequences(count: usize) -> String {
    if count == 1 { "1 sequence".to_owned() } else { format!("{count} sequences") }
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}: {}", self.tensor, self.experts, self.reason)
    }
}

impl DevicePlan {
    /// The lines of the table, and what each says of a split.
    fn lines(&self) -> Vec<(String, Vec<String>)> {
        let mut lines = Vec::new();
        let mut line = |name: String, of: &dyn Fn(&Split) -> String| {
            lines.push((name, self.splits.iter().map(of).collect::<Vec<_>>()));
        };
        for (index, weights) in self.splits[0].parts.iter().enumerate() {
            line(weights.part.to_string(), &|split| gigabytes(split.parts[index].bytes));
        }
        line("weights".into(), &|split| gigabytes(split.weights));
        let of = format!("{} of {}", sequences(self.batch), self.context);
        line(format!("cache, {of}"), &|split| gigabytes(split.cache));
        line(format!("chunk of {} of prompts", self.chunk), &|split| gigabytes(split.prompts.total));
        if self.devices > 1 {
            line("  sent and got in it".into(), &|split| gigabytes(split.prompts.sent));
        }
        line("  logits of it".into(), &|split| gigabytes(split.prompts.logits));
        line("step".into(), &|split| gigabytes(split.step.total));
        if self.devices > 1 {
            line("  sent and got in it".into(), &|split| gigabytes(split.step.sent));
        }
        line("  logits of it".into(), &|split| gigabytes(split.step.logits));
        line("in all".into(), &|split| gigabytes(split.total));
        // What is left is not less than it says, what lacks not more.
        line("left".into(), &|split| match u64::try_from(split.left) {
            Ok(left) => thousandths(left / 1_000_000),
            Err(_) => format!("-{}", gigabytes(split.left.unsigned_abs())),
        });
        line(format!("longest context, {}", sequences(self.batch)), &|split| match split.longest_context {
            0 => "none".into(),
            longest if longest == self.max_context => format!("{longest} (config.json's)"),
            longest => longest.to_string(),
        });
        line(format!("sequences of {}", self.context), &|split| split.most_sequences.to_string());
        line("  tokens".into(), &|split| split.most_tokens.to_string());
        lines
    }
}

impl fmt::Display for DevicePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = format!("{}, GB on a device", self.model);
        let splits: Vec<String> =
            self.splits.iter().map(|split| format!("{}x{}", split.tensor, split.experts)).collect();
        let header: Vec<&str> = [&*header].into_iter().chain(splits.iter().map(String::as_str)).collect();
        let mut table = table(false, &header);
        (1..header.len()).for_each(|column| align_right(&mut table, column));
        for (name, cells) in self.lines() {
            table.add_row([name].into_iter().chain(cells).map(Cell::new));
        }
        writeln!(f, "{}", table.trim_fmt())?;
        self.impossible.iter().try_for_each(|split| writeln!(f, "{split}"))?;
        write!(
            f,
            "PxQ: heads and columns in P parts, experts in Q blocks. {} of {} GB (10^9 bytes), {} GB of which kept free. \
             Weights in {}, a cached token in {}: {} bytes.",
            if self.devices == 1 { "1 device".to_owned() } else { format!("{} devices", self.devices) },
            exact(self.memory),
            exact(self.reserve),
            self.weight_format,
            self.cache_format,
            self.splits[0].cache_per_token,
        )?;
        if self.own_sequences {
            write!(f, " Each of the Q ranks has sequences of its own.")?;
        }
        if self.weight_format == WeightFormat::Fp8 || !["bf16", "f32"].contains(&&*self.cache_format) {
            write!(
                f,
                " The CUDA model keeps weights and cache in bf16 or f32 alone: fp8 and packed are what they would take."
            )?;
        }
        Ok(())
    }
}
