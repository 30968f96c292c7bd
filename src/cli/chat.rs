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
use super::talk::{MOST, ModelArgs, RuleArgs, Watch, has_left, say, spoken};

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
    while let Some(line) = lines.next()? {
        let answered = match line.trim() {
            "" => continue,
            "/exit" => break,
            "/reset" => {
                chat.reset();
                continue;
            }
            said => chat.answer(said, lines.is_terminal()),
        };
        match answered {
            Err(error) if has_left(&error) => break,
            // a person can say something else
            Err(error) if lines.is_terminal() => {
                let _ = writeln!(std::io::stderr(), "{}", Text::message(&error.to_string()));
            }
            answered => answered?,
        }
    }
    Ok(Done { output: Text::lines(""), conforms: true })
}

/// A conversation.
struct Chat<'a> {
    folder: &'a ModelFolder,
    rules: Rules,
    session: Session<'a>,
    /// What was there before the first question.
    beginning: Vec<Message>,
    messages: Vec<Message>,
    /// How many answers there were: each draws other numbers.
    answers: usize,
}

impl<'a> Chat<'a> {
    fn new(args: &ChatArgs, folder: &'a ModelFolder, rules: Rules) -> Result<Self> {
        // that there is none is said before the first question
        folder.template()?;
        let beginning: Vec<Message> = args.system.iter().map(|text| Message::new("system", text)).collect();
        let (context, most) = (folder.config.max_position_embeddings, rules.config.max_new_tokens);
        // a first question of some length; what comes later is seen when it comes
        let new = most.unwrap_or(MOST).min(context);
        let first = Sequences { batch: 1, prompt: FIRST.min(context), new, padded: false };
        let session = Session::new(folder, args.model.decoder(folder, first)?)?;
        Ok(Chat { folder, rules, session, messages: beginning.clone(), beginning, answers: 0 })
    }

    fn reset(&mut self) {
        self.messages.clone_from(&self.beginning);
    }

    /// Answers on stdout. What cannot be answered is as if it had not been said.
    fn answer(&mut self, said: &str, live: bool) -> Result<()> {
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", said));
        let (_, prompt) = conversation(self.folder, &messages)?;
        let mut watch = Watch::new(self.folder, 1, self.rules.config.max_new_tokens.unwrap_or(MOST), live);
        let rules = Rules { first_sequence: self.answers, ..self.rules.clone() };
        let completion = self.session.say(&prompt, &rules, &mut watch)?;
        let text = completion.text.trim();
        say(&spoken(&if live { "\n".to_owned() } else { format!("{text}\n") }))?;
        messages.push(Message::new("assistant", text));
        self.messages = messages;
        self.answers += 1;
        Ok(())
    }
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
