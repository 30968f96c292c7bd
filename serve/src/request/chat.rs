//! `POST /v1/chat/completions`.

use dsv2::generate::ModelFolder;
use dsv2_foreign::Foreign;
use dsv2_text::{ChatOptions, Message};
use serde_json::{Map, Value, json};

use super::{Asked, Defaults, Fields, MOST_LOGPROBS, Prompt, fewest, new_tokens, tokens};
use crate::error::{ApiError, Result};

/// Who may speak. Some templates leave out others without a word.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// The most answers to one prompt.
const MOST_ANSWERS: usize = 128;

/// The most fields of messages beside role and content, for each of which the template is tried.
const MOST_BESIDE: usize = 8;

/// What a body asks for.
///
/// # Errors
/// If a field is impossible, not supported or not known, or the template refuses the messages.
pub fn asked(folder: &ModelFolder, defaults: &Defaults, mut fields: Fields) -> Result<Asked> {
    let rules = defaults.rules(folder, &mut fields)?;
    let (old, newer) = (fields.take::<usize>("max_tokens")?, fields.take::<usize>("max_completion_tokens")?);
    let most = newer.or(old);
    if most == Some(0) {
        return Err(ApiError::field("max_tokens", "expected at least 1, found 0"));
    }
    let n = count(&mut fields)?;
    let wanted = fields.take("logprobs")?.unwrap_or(false);
    let top = fields.take::<usize>("top_logprobs")?;
    match top {
        Some(_) if !wanted => {
            return Err(ApiError::field("top_logprobs", "expected with `logprobs`: true, found without"));
        }
        Some(found) if found > MOST_LOGPROBS => {
            return Err(ApiError::field("top_logprobs", format_args!("expected 0 to {MOST_LOGPROBS}, found {found}")));
        }
        _ => {}
    }
    let (stream, include_usage) = stream(&mut fields)?;
    let return_token_ids = fields.take("return_token_ids")?.unwrap_or(false);
    fields.refuse("response_format", &[json!({"type": "text"})])?;
    fields.refuse("modalities", &[json!(["text"])])?;
    for name in
        ["functions", "function_call", "audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"]
    {
        fields.refuse(name, &[])?;
    }
    let tools = fields.take::<Vec<Value>>("tools")?.filter(|tools| !tools.is_empty());
    // what an answer calls is told as the model writes it, and nobody makes it call
    let choice = if tools.is_some() { vec![json!("auto"), json!("none")] } else { vec![json!("none")] };
    let none = fields.take::<Value>("tool_choice")?;
    if let Some(found) = none.as_ref().filter(|found| !choice.contains(found)) {
        let expected: Vec<String> = choice.iter().map(Value::to_string).collect();
        let message = format_args!("expected nothing or {}, found {found}", expected.join(", "));
        return Err(ApiError::field("tool_choice", message).with_code("unsupported_parameter"));
    }
    let tools = tools.filter(|_| none != Some(json!("none")));
    let messages = messages(fields.need("messages")?)?;
    fields.end()?;
    let text = render(folder, &messages, tools.as_deref())?;
    // the template has written the special tokens already
    let tokens = tokens(folder, &text, false, "messages")?;
    let new = vec![new_tokens(folder, tokens.len(), most, "messages", defaults.chat())?];
    fewest(&rules, &new)?;
    let logprobs = wanted.then_some(top.unwrap_or(0));
    let prompts = vec![Prompt { text, tokens }];
    Ok(Asked { prompts, n, rules, new, logprobs, echo: false, stream, include_usage, return_token_ids })
}

/// How many answers each prompt gets.
pub(super) fn count(fields: &mut Fields) -> Result<usize> {
    let n = fields.take::<usize>("n")?.unwrap_or(1);
    match n {
        1..=MOST_ANSWERS => Ok(n),
        _ => Err(ApiError::field("n", format_args!("expected 1 to {MOST_ANSWERS}, found {n}"))),
    }
}

/// Whether the answer comes in parts, and whether usage is told at their end.
pub(super) fn stream(fields: &mut Fields) -> Result<(bool, bool)> {
    let stream = fields.take("stream")?.unwrap_or(false);
    let Some(mut options) = fields.take::<Map<String, Value>>("stream_options")? else { return Ok((stream, false)) };
    let refused = |found: &dyn std::fmt::Display| {
        ApiError::field(
            "stream_options",
            format_args!("expected {{\"include_usage\": true or false}} and `stream`: true, found {found}"),
        )
    };
    let include_usage = match options.shift_remove("include_usage") {
        None => false,
        Some(value) => value.as_bool().ok_or_else(|| refused(&value))?,
    };
    // noise against those who listen to the lengths of encrypted packets: there is no encryption here
    options.shift_remove("include_obfuscation");
    match options.keys().next() {
        Some(name) => Err(refused(&format!("`{name}`"))),
        None if !stream => Err(refused(&"it without `stream`")),
        None => Ok((stream, include_usage)),
    }
}

/// Messages whose content is one text, and whose roles every template knows.
fn messages(values: Vec<Value>) -> Result<Vec<Message>> {
    (1..).zip(values).map(|(number, value)| message(number, value)).collect()
}

fn message(number: usize, value: Value) -> Result<Message> {
    let message = Message::from_value(number, value)?;
    let refused = |expected: &str, found: String| {
        ApiError::field("messages", format_args!("message {number}: expected {expected}, found {found}"))
    };
    let message = match message.role() {
        // OpenAI's newer word
        Some("developer") => message.with("role", json!("system")),
        Some(role) if ROLES.contains(&role) => message,
        Some(role) => return Err(refused(&format!("a role of {}", ROLES.join(", ")), format!("{role:?}"))),
        None => return Err(refused("a role", "none".to_owned())),
    };
    match message.fields().get("content") {
        Some(Value::Array(parts)) => {
            let text = |part: &Value| (part["type"] == "text").then(|| part["text"].as_str().map(str::to_owned))?;
            match parts.iter().map(text).collect::<Option<Vec<String>>>() {
                // as vLLM
                Some(texts) => Ok(message.with("content", json!(texts.join("\n")))),
                None => Err(refused("content of texts alone", json!(parts).to_string())),
            }
        }
        Some(Value::String(_)) => Ok(message),
        None | Some(Value::Null) if message.fields().contains_key("tool_calls") => Ok(message),
        found => Err(refused("content that is a text", found.map_or("none".to_owned(), Value::to_string))),
    }
}

/// What a message says beside what it is about. (The id of a call is nothing that a model would read.)
fn beside<'a>((name, value): (&'a String, &Value)) -> Option<&'a str> {
    let says = match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    (says && !["role", "content", "tool_call_id"].contains(&name.as_str())).then_some(name)
}

fn leave_out(number: usize, message: &Message, name: &str) -> Result<Message> {
    let mut fields = message.fields().clone();
    fields.shift_remove(name);
    Ok(Message::from_value(number, Value::Object(fields))?)
}

/// The prompt that messages and tools make. What a template has no place for is refused, not left out.
fn render(folder: &ModelFolder, messages: &[Message], tools: Option<&[Value]>) -> Result<String> {
    let template = folder.template()?;
    let options = ChatOptions { tools, add_generation_prompt: true, ..ChatOptions::default() };
    let text = template.render(messages, &options)?;
    let without = tools.map(|_| template.render(messages, &ChatOptions { tools: None, ..options.clone() }));
    if matches!(without, Some(Ok(without)) if without == text) {
        return Err(ApiError::field("tools", "the model's chat template has no place for them")
            .with_code("unsupported_parameter"));
    }
    let mut names: Vec<&str> = messages.iter().flat_map(|message| message.fields().iter().filter_map(beside)).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > MOST_BESIDE {
        let message =
            format_args!("expected at most {MOST_BESIDE} fields beside role and content, found {}", names.len());
        return Err(ApiError::field("messages", message));
    }
    for name in names {
        let without = (1..).zip(messages).map(|(number, message)| leave_out(number, message, name));
        let without = without.collect::<Result<Vec<_>>>()?;
        if template.render(&without, &options).is_ok_and(|without| without == text) {
            let message = format_args!("the model's chat template has no place for `{}` of a message", Foreign(name));
            return Err(ApiError::field("messages", message));
        }
    }
    let others: Vec<Message> = messages.iter().filter(|message| message.role() != Some("tool")).cloned().collect();
    if others.len() < messages.len() && template.render(&others, &options).is_ok_and(|without| without == text) {
        return Err(ApiError::field("messages", "the model's chat template has no place for the role \"tool\""));
    }
    Ok(text)
}
