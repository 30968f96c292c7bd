//! The table as text.

use std::fmt;

use comfy_table::Cell;

use super::KvCacheTable;
use crate::table::{align_right, table};

/// Contexts, in units of 1024 tokens, that the released models are published for. Their config.json has 163840 positions (40
/// times 4096) in all of them.
const PUBLISHED_FOR: [(&str, usize); 5] =
    [("v2", 128), ("v2-lite", 32), ("coder-v2", 128), ("coder-v2-lite", 128), ("v2.5", 128)];

impl fmt::Display for KvCacheTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.memory as f64 / 1e9;
        let fits = match self.batch {
            1 => format!("longest context in {memory} GB"),
            batch => format!("longest of {batch} contexts in {memory} GB"),
        };
        let models = self.models.join(", ");
        let header =
            [&*models, "", "numbers/token/layer", "bytes/token/layer", "bytes/token", "tokens/GB", &fits, "of MHA"];
        let mut table = table(false, &header);
        (2..header.len()).for_each(|column| align_right(&mut table, column));
        for row in &self.rows {
            table.add_row([
                Cell::new(row.attention),
                Cell::new(&row.format),
                Cell::new(row.numbers_per_token_per_layer),
                Cell::new(row.bytes_per_token_per_layer),
                Cell::new(row.bytes_per_token),
                Cell::new(row.tokens_per_gb),
                Cell::new(match row.longest_context {
                    longest if longest == self.max_context => format!("{longest} (config.json's)"),
                    longest => longest.to_string(),
                }),
                Cell::new(format!("{:.2} %", 100.0 * row.of_mha_in_bf16)),
            ]);
        }
        writeln!(f, "{}", table.trim_fmt())?;
        let saved: Vec<String> = self
            .saved_against_deepseek_67b
            .iter()
            .map(|saving| format!("{:.1} % in {}", 100.0 * saving.saved, saving.format))
            .collect();
        write!(
            f,
            "{} layers. Against DeepSeek 67B (95 layers, GQA with 8 heads of 128, bf16: {} bytes/token) MLA saves {}.",
            self.layers,
            self.deepseek_67b_bytes_per_token,
            saved.join(", ")
        )?;
        let published = PUBLISHED_FOR.iter().filter(|(name, _)| self.models.iter().any(|model| model == name));
        let published: Vec<String> = published.map(|(name, length)| format!("{length}K ({name})")).collect();
        match &published[..] {
            [] => Ok(()),
            published => write!(
                f,
                " config.json's context is {}; published for contexts of {}.",
                self.max_context,
                published.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use dsv2_reference::DeepseekV2Config;

    use super::super::{KvCacheTable, Room};

    #[test]
    fn the_table() {
        let config = DeepseekV2Config::preset("v2").unwrap();
        let room = Room { memory: 40_000_000_000, batch: 4 };
        insta::assert_snapshot!(KvCacheTable::new("v2", &config, room).unwrap());
    }
}
