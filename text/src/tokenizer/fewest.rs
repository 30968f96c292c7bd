//! How few tokens a text could have at best: known long before it has any, which takes much more time and memory.

use std::collections::{HashMap, HashSet};

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::tokenizer::SplitDelimiterBehavior::Removed;
use tokenizers::{ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer as Inner};

use super::bytes;

/// What tokens say, as a tree of bytes: from a node, a byte leads to another node. The root is 0.
#[derive(Debug, Default)]
pub(super) struct Sayings {
    nodes: HashMap<(u32, u8), u32>,
    longest: usize,
}

impl Sayings {
    /// Those of a tokenizer; none, if a token could stand for other text than its own.
    pub(super) fn of(tokenizer: &Inner) -> Option<Self> {
        let vocabulary = only_what_they_say(tokenizer)?;
        let mut sayings = Sayings::default();
        vocabulary.keys().for_each(|token| sayings.add(token.chars().flat_map(bytes::of_character)));
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        added.values().for_each(|token| sayings.add(token.content.bytes()));
        Some(sayings)
    }

    fn add(&mut self, saying: impl Iterator<Item = u8>) {
        let (mut node, mut length) = (0, 0);
        for byte in saying {
            let next = self.nodes.len() as u32 + 1;
            node = *self.nodes.entry((node, byte)).or_insert(next);
            length += 1;
        }
        self.longest = self.longest.max(length);
    }

    /// How many bytes a token can say of the begin of a text, at most.
    fn most_of(&self, text: &[u8]) -> usize {
        let mut node = 0;
        text.iter().take_while(|byte| self.nodes.get(&(node, **byte)).inspect(|next| node = **next).is_some()).count()
    }

    /// Whether more tokens than these are needed for a text. Where a token may say some bytes, a shorter one may say fewer of them:
    /// so what `n` tokens can say are all begins of the text up to some length, and only those that `n - 1` cannot say tell more of
    /// the next one.
    pub(super) fn need_more_than(&self, tokens: usize, text: &[u8]) -> bool {
        let (mut first, mut last) = (0, 0);
        for _ in 0..tokens {
            let mut reached = last + 1;
            for begin in (first..=last).rev() {
                if reached >= text.len() {
                    return false;
                }
                if begin + self.longest <= reached {
                    break;
                }
                reached = reached.max(begin + self.most_of(&text[begin..]));
            }
            (first, last) = (last + 1, reached);
        }
        last < text.len()
    }
}

/// The vocabulary, if tokens are pieces of a text that leave out nothing, and each says its piece: byte-level BPE, with a token for
/// each byte of texts, over the text as it is.
fn only_what_they_say(tokenizer: &Inner) -> Option<HashMap<String, u32>> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    let pieces = tokenizer.get_pre_tokenizer().and_then(byte_levels) == Some(1);
    let as_it_is = tokenizer.get_normalizer().is_none_or(changes_nothing);
    let all = tokenizer.get_post_processor().is_none_or(keeps_all);
    // these take the space beside them, however much there is
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    let greedy = added.values().any(|token| token.lstrip || token.rstrip);
    let marked = model.continuing_subword_prefix.is_some() || model.end_of_word_suffix.is_some();
    let vocabulary = model.get_vocab();
    // where two have one id, what is merged is not what is said
    let ids: HashSet<u32> = vocabulary.values().copied().collect();
    // published vocabularies leave out bytes that no text in UTF-8 has
    let in_texts = |byte: &char| !matches!(bytes::of_character(*byte)[..], [0xc0 | 0xc1 | 0xf5..]);
    let mut alphabet = ByteLevel::alphabet().into_iter().filter(in_texts);
    let every_byte = alphabet.all(|byte| vocabulary.contains_key(&byte.to_string()));
    let certain = pieces && as_it_is && all && !greedy && !marked && every_byte && ids.len() == vocabulary.len();
    certain.then_some(vocabulary)
}

/// How many times text is written as bytes, if nothing is left out.
fn byte_levels(pre_tokenizer: &PreTokenizerWrapper) -> Option<usize> {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(_) => Some(1),
        PreTokenizerWrapper::Digits(_) => Some(0),
        PreTokenizerWrapper::Split(split) if split.behavior != Removed => Some(0),
        PreTokenizerWrapper::Sequence(all) => all.as_ref().iter().map(byte_levels).sum(),
        _ => None,
    }
}

fn changes_nothing(normalizer: &NormalizerWrapper) -> bool {
    matches!(normalizer, NormalizerWrapper::Sequence(all) if all.as_ref().iter().all(changes_nothing))
}

/// Whether all tokens of a text are still there afterwards.
fn keeps_all(processor: &PostProcessorWrapper) -> bool {
    match processor {
        PostProcessorWrapper::ByteLevel(_) => true,
        PostProcessorWrapper::Sequence(all) => all.as_ref().iter().all(keeps_all),
        PostProcessorWrapper::Template(template) => match serde_json::to_value(&template.single) {
            Ok(pieces) => {
                pieces.as_array().is_some_and(|pieces| pieces.iter().any(|piece| piece["Sequence"]["id"] == "A"))
            }
            Err(_) => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests;
