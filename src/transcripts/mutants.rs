//! Known bugs of the text around a model. The judge tries them on what is wrong: those that make what the transcript has are
//! named. The tests plant each, and each must be caught and named.

use super::judge::Part;

/// Where an engine went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// What is done otherwise.
    pub(super) bug: Bug,
    /// A name for reports.
    pub name: &'static str,
    /// The part that shows it.
    pub part: Part,
    /// What it does, for people.
    pub about: &'static str,
}

/// The places where the rules branch; [`MUTANTS`] says what each does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    NoGenerationPrompt,
    NewlinesHalved,
    NewlineAtEnd,
    SpaceAtEnd,
    ContentStripped,
    SystemDropped,
    SystemAsUser,
    OnlyLastTurn,
    EndTokensDropped,
    ToolsDropped,
    BosTwice,
    BosMissing,
    EosAppended,
    LeadingSpace,
    SpecialTokensAsText,
    FirstTokenCut,
    PenaltyIgnored,
    PenaltyWithoutPrompt,
    PenaltyAlwaysDivides,
    PenaltyByCount,
    TopKOffByOne,
    TopKIgnored,
    TopPIgnored,
    MinPAbsolute,
    MinPIgnored,
    TemperatureLast,
    BiasIgnored,
    MinTokensIgnored,
    TemperatureIgnored,
    LogprobsBeforePenalty,
    LogprobsBase2,
    LogprobsBase10,
    LogprobsUnnormalised,
    Probabilities,
    LogprobsShifted,
    LogprobsAmongTop,
    EndTokenIgnored,
    StopTokensIgnored,
    StopStringIgnored,
    StopStringAtTokensOnly,
    OneTokenMore,
    OneTokenLess,
    LengthWithPrompt,
    ReasonSwapped,
    EndTokenShown,
    StopStringShown,
    TextAfterStopString,
    SpecialTokensShown,
    CharactersSplit,
    TextStripped,
    SpacesCleaned,
    EchoIgnored,
    BosNotCounted,
    CharactersCounted,
    /// None, where the end token is to be ignored: vLLM lets it come and goes on, llama.cpp lets it not come.
    EndTokenForbidden,
}

/// All of them, part by part; where several make the same, the likelier first.
pub const MUTANTS: &[Mutant] = {
    use Bug::*;
    use Part::*;
    const fn m(bug: Bug, name: &'static str, part: Part, about: &'static str) -> Mutant {
        Mutant { bug, name, part, about }
    }
    &[
        m(NoGenerationPrompt, "no-generation-prompt", Template, "the template does not open the assistant's turn"),
        m(NewlinesHalved, "newlines-halved", Template, "two newlines are one: the template lost its own"),
        m(NewlineAtEnd, "newline-at-end", Template, "a newline follows the template, as its file ends with one"),
        m(SpaceAtEnd, "space-at-end", Template, "a space follows the template"),
        m(ContentStripped, "content-stripped", Template, "white space around what is said is cut off"),
        m(SystemDropped, "system-dropped", Template, "the system's words are left out"),
        m(SystemAsUser, "system-as-user", Template, "the system's words are said by the user"),
        m(OnlyLastTurn, "only-last-turn", Template, "only the last message is rendered"),
        m(EndTokensDropped, "end-tokens-dropped", Template, "the end token between turns is left out"),
        m(ToolsDropped, "tools-dropped", Template, "the tools are left out"),
        m(
            BosTwice,
            "bos-twice",
            Tokenization,
            "the begin token comes twice: from the template, and from the tokenizer",
        ),
        m(BosMissing, "bos-missing", Tokenization, "the begin token is missing"),
        m(EosAppended, "eos-appended", Tokenization, "the prompt ends with the end token"),
        m(LeadingSpace, "leading-space", Tokenization, "a space is put before the text"),
        m(
            SpecialTokensAsText,
            "special-tokens-as-text",
            Tokenization,
            "special tokens in the text are cut up like any text",
        ),
        m(FirstTokenCut, "first-token-cut", Tokenization, "the first token of the text is cut off"),
        m(PenaltyIgnored, "penalty-ignored", Tokens, "repetition_penalty has no effect"),
        m(PenaltyWithoutPrompt, "penalty-without-prompt", Tokens, "the repetition penalty does not see the prompt"),
        m(PenaltyByCount, "penalty-by-count", Tokens, "a token that came twice is penalised twice"),
        m(TopKOffByOne, "top-k-off-by-one", Tokens, "one token more than top_k may be drawn"),
        m(TopKIgnored, "top-k-ignored", Tokens, "top_k has no effect"),
        m(TemperatureLast, "top-p-before-temperature", Tokens, "the filters are applied before the temperature"),
        m(TopPIgnored, "top-p-ignored", Tokens, "top_p has no effect"),
        m(MinPIgnored, "min-p-ignored", Tokens, "min_p has no effect"),
        m(BiasIgnored, "bias-ignored", Tokens, "logit_bias has no effect"),
        m(MinTokensIgnored, "min-tokens-ignored", Tokens, "an end token may come before min_tokens"),
        m(MinPAbsolute, "min-p-absolute", Logprobs, "min_p is held against 1, not against the likeliest"),
        m(
            PenaltyAlwaysDivides,
            "penalty-always-divides",
            Logprobs,
            "the repetition penalty divides negative logits, too",
        ),
        m(TemperatureIgnored, "temperature-ignored", Logprobs, "the temperature has no effect"),
        m(
            LogprobsBeforePenalty,
            "logprobs-before-penalty",
            Logprobs,
            "logprobs after the temperature, but before bias and penalty",
        ),
        m(LogprobsBase2, "logprobs-base-2", Logprobs, "logarithms to the base 2"),
        m(LogprobsBase10, "logprobs-base-10", Logprobs, "logarithms to the base 10"),
        m(LogprobsUnnormalised, "logits-as-logprobs", Logprobs, "logits in place of logprobs"),
        m(Probabilities, "probabilities", Logprobs, "probabilities in place of their logarithms"),
        m(LogprobsShifted, "logprobs-shifted", Logprobs, "each token has its successor's logprob"),
        m(LogprobsAmongTop, "logprobs-among-top", Logprobs, "the probabilities of the likeliest 20 sum up to 1"),
        m(EndTokenIgnored, "end-token-ignored", FinishReason, "the answer goes on after the end token"),
        m(StopTokensIgnored, "stop-tokens-ignored", FinishReason, "the answer goes on after a token of stop_token_ids"),
        m(StopStringIgnored, "stop-string-ignored", FinishReason, "the answer goes on after a stop string"),
        m(
            StopStringAtTokensOnly,
            "stop-string-at-tokens-only",
            FinishReason,
            "a stop string is seen only where it is a token by itself",
        ),
        m(OneTokenMore, "one-token-more", FinishReason, "the answer is one token longer than max_tokens"),
        m(OneTokenLess, "one-token-less", FinishReason, "the answer is one token shorter than max_tokens"),
        m(LengthWithPrompt, "length-with-prompt", FinishReason, "max_tokens counts the prompt, too"),
        m(ReasonSwapped, "reason-swapped", FinishReason, "stop where it is length, or the reverse"),
        m(EndTokenShown, "end-token-shown", Text, "the text ends with the end token"),
        m(StopStringShown, "stop-string-shown", Text, "the text ends with the stop string"),
        m(TextAfterStopString, "text-after-stop-string", Text, "the last token's text is there beyond the stop string"),
        m(SpecialTokensShown, "special-tokens-shown", Text, "special tokens are part of the text"),
        m(
            CharactersSplit,
            "characters-split",
            Text,
            "tokens are decoded one by one, and characters of several are broken",
        ),
        m(TextStripped, "text-stripped", Text, "white space around the answer is cut off"),
        m(SpacesCleaned, "spaces-cleaned", Text, "spaces before punctuation are taken away"),
        m(EchoIgnored, "echo-ignored", Text, "the prompt is not echoed"),
        m(BosNotCounted, "bos-not-counted", Usage, "the begin token is not counted"),
        m(CharactersCounted, "characters-counted", Usage, "characters are counted, not tokens"),
    ]
};

/// Those of a part.
pub(super) fn of(part: Part) -> impl Iterator<Item = &'static Mutant> {
    MUTANTS.iter().filter(move |mutant| mutant.part == part)
}
