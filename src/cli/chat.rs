//! `dsv2 chat`.

use std::io::{BufRead, IsTerminal, Read, Write};

use clap::Args;
use dsv2::generate::need::Sequences;
use dsv2::generate::{ModelFolder, Rules, Session, conversation};
use dsv2::{Error, Result};
use dsv2_foreign::Text;
use dsv2_text::Message;
use rustyline::error::ReadlineError;

use super::Done;
use super::progress::Progress;
use super::stdout::{has_left, say};
use super::talk::{MOST, ModelArgs, RuleArgs, Watch, spoken};

/// The arguments of `dsv2 chat`.
#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

/// What is said where a person sits at a terminal.
const WELCOME: &str = "/reset begins anew, /exit or Ctrl-D ends";

/// Tokens of a question for which memory is planned.
const FIRST: usize = 512;

/// The longest line that is read where nobody types.
const LONGEST: u64 = 1 << 20;

pub fn run(args: &ChatArgs) -> Result<Done> {
    let folder = args.model.open()?;
    let rules = args.rules.rules(&folder)?;
    let mut lines = Lines::new()?;
    let mut chat = Chat::new(args, &folder, rules)?;
    let (typed, mut all_answered) = (lines.is_terminal(), true);
    let mut number = 0;
    while let Some(line) = lines.next()? {
        number += 1;
        let answered = match line.trim() {
            "" if typed => continue,
            "/exit" => break,
            "/reset" => {
                chat.reset();
                continue;
            }
            // whoever pipes lines in reads as many
            "" => say(&spoken("\n")),
            said => match chat.asked(said) {
                Ok(asked) => chat.answer(asked, typed),
                Err(error) => {
                    all_answered = false;
                    let line = if typed { String::new() } else { format!("line {number}: ") };
                    let _ = writeln!(std::io::stderr(), "{}", Text::message(&format!("{line}{error}")));
                    if typed { Ok(()) } else { say(&spoken("\n")) }
                }
            },
        };
        match answered {
            Err(error) if has_left(&error) => break,
            // a person can say something else
            Err(error) if typed => {
                let _ = writeln!(std::io::stderr(), "{}", Text::message(&error.to_string()));
            }
            answered => answered?,
        }
    }
    Ok(Done { output: Text::lines(""), conforms: typed || all_answered })
}

/// A question that can be answered.
struct Asked {
    /// All that was said, the question last.
    messages: Vec<Message>,
    prompt: Vec<i64>,
}

/// A conversation.
struct Chat<'a> {
    model: &'a ModelArgs,
    folder: &'a ModelFolder,
    /// What memory is planned for.
    planned: Sequences,
    rules: Rules,
    session: Session<'a>,
    /// What was there before the first question.
    beginning: Vec<Message>,
    messages: Vec<Message>,
    /// How many answers there were: each draws other numbers.
    answers: usize,
}

impl<'a> Chat<'a> {
    fn new(args: &'a ChatArgs, folder: &'a ModelFolder, rules: Rules) -> Result<Self> {
        // that there is none is said before the first question
        folder.template()?;
        let beginning: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
        // a first question of some length; for longer texts it is planned anew
        let first = FIRST.min(folder.config.max_position_embeddings);
        let planned = Sequences { batch: 1, cached: 0, prompt: first, new: room(folder, &rules, first), padded: false };
        let session = Session::new(folder, args.model.decoder(folder, planned)?)?;
        let (model, messages) = (&args.model, beginning.clone());
        Ok(Chat { model, folder, planned, rules, session, messages, beginning, answers: 0 })
    }

    /// Refuses a prompt that there is not the memory for.
    fn plan(&mut self, prompt: &[i64]) -> Result<()> {
        let cached = self.session.known(prompt);
        let fed = prompt.len() - cached;
        let all = |planned: Sequences| planned.cached + planned.prompt + planned.new;
        let sequences =
            Sequences { cached, prompt: fed, new: room(self.folder, &self.rules, prompt.len()), ..self.planned };
        if all(sequences) > all(self.planned) || fed > self.planned.prompt {
            self.model.grow(self.folder, self.planned, sequences)?;
            self.planned = sequences;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.messages.clone_from(&self.beginning);
    }

    /// A question, if there is room for it. One that is not answered is as if it had not been said.
    fn asked(&mut self, said: &str) -> Result<Asked> {
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", said));
        let prompt = conversation(self.folder, &messages)?.tokens;
        self.plan(&prompt)?;
        Ok(Asked { messages, prompt })
    }

    /// Answers on stdout.
    fn answer(&mut self, asked: Asked, live: bool) -> Result<()> {
        let Asked { mut messages, prompt } = asked;
        let mut progress = Progress::of_something_slow();
        let most = self.rules.config.max_new_tokens.unwrap_or(MOST);
        let mut watch = Watch::new(self.folder, 1, most, live, (String::new(), &mut progress));
        let rules = Rules { first_sequence: self.answers, ..self.rules.clone() };
        let completion = self.session.say(&prompt, &rules, &mut watch)?;
        watch.quiet();
        let text = completion.text.trim();
        say(&spoken(&if live { "\n".to_owned() } else { format!("{text}\n") }))?;
        messages.push(Message::new("assistant", text));
        self.messages = messages;
        self.answers += 1;
        Ok(())
    }
}

/// For how many tokens after a prompt there is to be room: for an answer, and as much again, since a [`Session`] makes room for
/// some more turns.
fn room(folder: &ModelFolder, rules: &Rules, prompt: usize) -> usize {
    let answer = rules.config.max_new_tokens.unwrap_or(MOST);
    let whole = prompt.saturating_add(answer).saturating_mul(2);
    whole.min(folder.config.max_position_embeddings).saturating_sub(prompt)
}

/// Where what is said to the model comes from.
enum Lines {
    /// A person who edits lines.
    Terminal(Box<rustyline::DefaultEditor>),
    /// Anything else.
    Plain(std::io::StdinLock<'static>),
}

impl Lines {
    fn new() -> Result<Self> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        if !stdin.is_terminal() || !stdout.is_terminal() {
            return Ok(Lines::Plain(stdin.lock()));
        }
        let editor = rustyline::DefaultEditor::new().map_err(|error| refused(&error))?;
        let _ = writeln!(std::io::stderr(), "{WELCOME}");
        Ok(Lines::Terminal(Box::new(editor)))
    }

    /// Whether somebody is there who can try again.
    fn is_terminal(&self) -> bool {
        matches!(self, Lines::Terminal(_))
    }

    /// The next line; none when there are no more.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Lines::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // a line that is not remembered can be typed again
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(refused(&error)),
            },
            Lines::Plain(stdin) => {
                let mut line = Vec::new();
                let read = stdin.take(LONGEST).read_until(b'\n', &mut line).map_err(Error::io("stdin", "read"))?;
                if read as u64 == LONGEST {
                    return Err(Error::request("stdin", format!("lines below {LONGEST} bytes"), "a longer one"));
                }
                let text = String::from_utf8(line);
                let text = text.map_err(|error| Error::request("stdin", "text in UTF-8", error.utf8_error()))?;
                Ok(Some(text).filter(|_| read > 0))
            }
        }
    }
}

fn refused(error: &ReadlineError) -> Error {
    Error::request("terminal", "lines from it", error)
}
