//! Messages into a prompt, by the Jinja template that comes with a model, as `apply_chat_template` of Transformers 5.23.

mod clock;
mod environment;
mod json;
mod message;
mod methods;
mod source;

use std::path::Path;

use indexmap::IndexMap;
use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Map, Value};
use time::PrimitiveDateTime;

use crate::error::{Error, Result};
use crate::folder;
use crate::tokenizer::SpecialTokens;
pub use message::Message;

/// The longest template that is read, in bytes.
const LONGEST_TEMPLATE: u64 = 1 << 20;

/// The chat templates of a model. Most have one, `default`; some have another for tools.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    names: Vec<String>,
    special: Vec<(String, String)>,
}

/// What a template sees besides the messages.
#[derive(Clone, Debug, Default)]
pub struct ChatOptions<'a> {
    /// The functions that the model may call, each a JSON Schema.
    pub tools: Option<&'a [Value]>,
    /// Texts that the answer may rest on, each an object.
    pub documents: Option<&'a [Value]>,
    /// Whether the prompt ends with what begins an answer.
    pub add_generation_prompt: bool,
    /// Other variables. They stand above the special tokens.
    pub variables: Map<String, Value>,
    /// The name of the template, where a model has several. Without: `tool_use` if there are tools and it exists, else
    /// `default`.
    pub template: Option<&'a str>,
    /// What `strftime_now` tells: the local time. A template that asks is refused without.
    pub now: Option<PrimitiveDateTime>,
}

impl ChatTemplate {
    /// The templates of a checkpoint folder: chat_template.jinja and additional_chat_templates/; if there are none, those in
    /// tokenizer_config.json, one or a list with names; if there are none, that in chat_template.json.
    ///
    /// # Errors
    /// If there is none, or one is no template.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let config = folder::object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let special = SpecialTokens::new(&config, || folder::object(&folder.join("special_tokens_map.json")))?;
        let mut sources = source::of_files(folder)?;
        if sources.is_empty() {
            sources = source::of_config(config.get("chat_template"))?;
        }
        if sources.is_empty() {
            let legacy = folder::object(&folder.join("chat_template.json"))?;
            sources = source::of_config(legacy.as_ref().and_then(|file| file.get("chat_template")))?;
        }
        if sources.is_empty() {
            let expected = "chat_template.jinja, or a chat_template in tokenizer_config.json";
            return Err(Error::file(folder, expected, "neither"));
        }
        Self::new(sources, &special)
    }

    /// The template with this source.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_source(source: &str, special: &SpecialTokens) -> Result<Self> {
        Self::new(IndexMap::from([("default".to_owned(), source.to_owned())]), special)
    }

    fn new(sources: IndexMap<String, String>, special: &SpecialTokens) -> Result<Self> {
        let mut environment = environment::new();
        let mut names = Vec::new();
        for (name, source) in sources {
            let added = environment.add_template_owned(name.clone(), source::as_minijinja_reads_it(&source));
            added.map_err(|error| environment::refused(&error))?;
            names.push(name);
        }
        let special = special.named().map(|(name, token)| (name.to_owned(), token.to_owned())).collect();
        Ok(ChatTemplate { environment, names, special })
    }

    /// The names of the templates.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The prompt that the messages make.
    ///
    /// # Errors
    /// If there are no messages; if the template refuses them (an unknown role, an order that it does not know), its own
    /// words; if it goes on for too long.
    pub fn render(&self, messages: &[Message], options: &ChatOptions<'_>) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::template("expected at least one message, found none"));
        }
        let template = self.environment.get_template(self.chosen(options)?);
        let template = template.map_err(|error| environment::refused(&error))?;
        let mut context: IndexMap<&str, minijinja::Value> = IndexMap::new();
        context.extend(self.special.iter().map(|(name, token)| (name.as_str(), token.as_str().into())));
        for (name, value) in &options.variables {
            context.insert(name, minijinja::Value::from(Serde(value)));
        }
        let messages: Vec<_> = messages.iter().map(Message::as_templates_see_it).collect();
        context.insert("messages", minijinja::Value::from(Serde(messages)));
        context.insert("tools", minijinja::Value::from(Serde(options.tools)));
        context.insert("documents", minijinja::Value::from(Serde(options.documents)));
        context.insert("add_generation_prompt", options.add_generation_prompt.into());
        context.insert("strftime_now", clock::strftime_now(options.now));
        let context = minijinja::Value::from_pairs(context);
        template.render(context).map_err(|error| environment::refused(&error))
    }

    /// Which template is meant.
    fn chosen(&self, options: &ChatOptions<'_>) -> Result<&str> {
        let named = |name: &str| self.names.iter().find(|known| *known == name).map(String::as_str);
        let none = || format!("expected one of {}", dsv2_foreign::list(&self.names, 10));
        if let Some(name) = options.template {
            return named(name).ok_or_else(|| Error::template(format!("{}, found {name}", none())));
        }
        let for_tools = options.tools.and_then(|_| named("tool_use"));
        let chosen = for_tools.or_else(|| named("default"));
        chosen.ok_or_else(|| Error::template(format!("{} to be chosen: none of them is `default`", none())))
    }
}

#[cfg(test)]
mod tests;
