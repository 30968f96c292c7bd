//! How inputs are fed: the arguments that `check` and `trace` share.

use clap::Args;
use dsv2::case::Feed;
use dsv2_reference::Dialect;

use super::{chunks, dialect};

/// How inputs are fed.
#[derive(Args)]
pub struct FeedArgs {
    /// Whose DeepSeek-V2: hf, hf-pre-5.15 or deepseek
    #[arg(long, default_value = "hf", value_parser = dialect)]
    dialect: Dialect,
    /// The sequence is fed in chunks of these lengths, such as 7,1,1, through the cache (rotary embeddings that grow with the
    /// sequence depend on it, nothing else)
    #[arg(long, value_name = "LENGTHS", value_parser = chunks)]
    chunks: Option<std::vec::Vec<usize>>,
    /// Whether there is a cache: without one and without a mask, positions that do not rise by one begin a new sequence
    /// [default: as config.json says]
    #[arg(long, value_name = "BOOL")]
    use_cache: Option<bool>,
    /// The inputs' attention_mask and position_ids are not fed, as to an engine that takes ids only
    #[arg(long)]
    ids_only: bool,
    /// Ids alone as generate() of Transformers feeds them: where they hold pad_token_id (and it ends no text), mask and
    /// positions leave these tokens out
    #[arg(long, conflicts_with = "ids_only")]
    infer_mask: bool,
    /// Only the last N tokens of each sequence, after those before them have been cached: a decoding step
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1")]
    decode: Option<usize>,
}

impl FeedArgs {
    pub fn feed(&self) -> Feed {
        let FeedArgs { dialect, chunks, use_cache, ids_only, infer_mask, decode } = self;
        Feed {
            dialect: *dialect,
            chunks: chunks.clone(),
            use_cache: *use_cache,
            ids_only: *ids_only,
            infer_mask: *infer_mask,
            decode: *decode,
            layers: None,
            first_layers: None,
        }
    }
}
