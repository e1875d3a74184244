//! Chat templates: a model's Jinja source, rendered byte for byte as Hugging Face transformers renders
//! it in Python. Invariant: a template can only compute text from what it is given, in a bounded number
//! of steps; where Python raises, this fails too.
//!
//! Sources: the Jinja2 documentation and the environment that transformers sets up for chat templates
//! (blocks trimmed, loop controls, `tojson` without HTML escapes, `raise_exception`,
//! `strftime_now`, the `generation` block).

mod clock;
mod filters;
mod json;
mod methods;
mod python;
mod slice;
mod source;

use std::collections::BTreeMap;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use crate::{TextError, Tokenizer};
pub use clock::DateTime;

/// Steps that every template may take, and further ones for each JSON value it is given.
const BASE_STEPS: u64 = 1_000_000;
const STEPS_PER_VALUE: u64 = 1_000;
/// The longest text that a template may write, in bytes.
const MAX_OUTPUT: usize = 64 << 20;
/// The longest template that is read, in bytes: several times the longest real one.
const MAX_SOURCE: usize = 1 << 20;
/// Stack of the rendering thread, in bytes; only what is used is ever touched.
const STACK: usize = 256 << 20;
const NAME: &str = "chat_template";

/// The texts of the special tokens that templates write (`bos_token`, …); what is `None` is
/// undefined in the template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// `bos_token`.
    pub bos: Option<String>,
    /// `eos_token`.
    pub eos: Option<String>,
    /// `pad_token`.
    pub pad: Option<String>,
    /// `unk_token`.
    pub unk: Option<String>,
}

impl TemplateTokens {
    /// The special tokens of a tokenizer.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let text = |id: Option<u32>| Some(tokenizer.token_text(id?)?.to_owned());
        Self {
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
            pad: text(tokenizer.pad()),
            unk: text(tokenizer.unk()),
        }
    }
}

/// What a template renders.
#[derive(Debug, Clone, Default)]
pub struct RenderInput {
    /// The conversation: an array of objects with `role` and `content`.
    pub messages: Json,
    /// The tools on offer: an array of JSON schemas, or `None`.
    pub tools: Option<Json>,
    /// Whether to end with the words that begin the assistant's answer.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`. They hide special tokens of the same name, but
    /// not the fields above.
    pub extra: Map<String, Json>,
    /// What `strftime_now` calls now; the system's clock in UTC where it is `None`.
    pub now: Option<DateTime>,
}

/// A compiled chat template.
///
/// Steps, output and nesting are bounded, so a hostile template cannot run forever. The memory of a
/// single step is not: a template that doubles a text in a loop grows it until memory ends, as it does
/// in Python. Lists and mappings joined to a text with `~` are printed in the engine's own way rather
/// than as Python's `repr`; printed alone or with `|string` they are as in Python.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`], with the line.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TextError> {
        if source.len() > MAX_SOURCE {
            return Err(TextError::TemplateLimit {
                limit: format!("{MAX_SOURCE} bytes of source ({} bytes)", source.len()),
            });
        }
        on_deep_stack(|| Self::compile(source, tokens))
    }

    fn compile(source: &str, tokens: TemplateTokens) -> Result<Self, TextError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| syntax_error(&error))?;
        environment.set_syntax(syntax);
        environment.set_debug(false);
        environment.remove_global("debug");
        environment.set_formatter(|out, _, value| {
            if value.is_undefined() {
                return Ok(());
            }
            out.write_str(&python::str_of(value)?).map_err(Error::from)
        });
        environment.set_unknown_method_callback(methods::call);
        environment.add_function("raise_exception", raise_exception);
        filters::add(&mut environment);
        environment.add_template_owned(NAME, source::adapt(source)).map_err(|error| syntax_error(&error))?;
        Ok(Self { environment, tokens })
    }

    /// The template for a conversation from `chat_template` in `tokenizer_config.json`: a string, or
    /// a list of `{name, template}` of which `tool_use` serves conversations with tools and
    /// `default` the others.
    pub fn pick(chat_template: &Json, has_tools: bool) -> Option<String> {
        let named = |name: &str| {
            let entries = chat_template.as_array()?;
            let entry = entries.iter().find(|entry| entry["name"] == name)?;
            entry["template"].as_str()
        };
        let single = chat_template.as_str();
        let with_tools = || named("tool_use").filter(|_| has_tools);
        let template = single.or_else(with_tools).or_else(|| named("default"));
        template.map(str::to_owned)
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TextError::TemplateRaised`] where the template refuses the conversation,
    /// [`TextError::TemplateRender`] where it fails, [`TextError::TemplateLimit`] where it takes too
    /// many steps or writes too much.
    pub fn render(&self, input: &RenderInput) -> Result<String, TextError> {
        let mut values = count(&input.messages);
        values = values.saturating_add(input.tools.as_ref().map_or(0, count));
        for value in input.extra.values() {
            values = values.saturating_add(count(value));
        }
        let steps = BASE_STEPS.saturating_add(values.saturating_mul(STEPS_PER_VALUE));
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(steps));
        on_deep_stack(|| {
            let mut out = Limited(Vec::new());
            environment
                .get_template(NAME)
                .and_then(|template| template.render_captured_to(self.context(input), &mut out))
                .map_err(|error| render_error(&error, steps))?;
            Ok(String::from_utf8(out.0).expect("a template writes text"))
        })
    }

    fn context(&self, input: &RenderInput) -> Value {
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        let tokens = [
            ("bos_token", &self.tokens.bos),
            ("eos_token", &self.tokens.eos),
            ("pad_token", &self.tokens.pad),
            ("unk_token", &self.tokens.unk),
        ];
        for (name, text) in tokens {
            if let Some(text) = text {
                context.insert(name.to_owned(), Value::from(text.as_str()));
            }
        }
        // transformers always passes it.
        context.insert("documents".to_owned(), Value::from(()));
        for (name, value) in &input.extra {
            context.insert(name.clone(), python::value_of(value));
        }
        let tools = input.tools.as_ref().map_or(Value::from(()), python::value_of);
        let now = input.now.unwrap_or_else(DateTime::now_utc);
        let clock = Value::from_function(move |format: &str| now.strftime(format));
        let fields = [
            ("messages", python::value_of(&input.messages)),
            ("tools", tools),
            ("add_generation_prompt", Value::from(input.add_generation_prompt)),
            ("strftime_now", clock),
        ];
        context.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        Value::from_pairs(context)
    }
}

/// Runs on a thread of its own with a deep stack: values that a template nests tens of thousands deep
/// are walked, and dropped, by recursion. A panic inside of the engine becomes an error.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, TextError> + Send) -> Result<T, TextError> {
    let failed = |what: &str| TextError::TemplateRender(what.to_owned());
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(&format!("no thread to render on: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(failed("the template engine panicked")))
    })
}

/// The number of JSON values in `value`, itself included.
fn count(value: &Json) -> u64 {
    let within: u64 = match value {
        Json::Array(items) => items.iter().map(count).sum(),
        Json::Object(fields) => fields.values().map(count).sum(),
        _ => 0,
    };
    within.saturating_add(1)
}

/// Marks the error of a template that called `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::str_of(message)?;
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

fn syntax_error(error: &Error) -> TextError {
    TextError::TemplateSyntax(describe(error))
}

fn render_error(error: &Error, steps: u64) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(raised) = inner.downcast_ref::<Raised>() {
            return TextError::TemplateRaised(raised.0.clone());
        }
        cause = inner.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TextError::TemplateLimit { limit: format!("{steps} steps") },
        ErrorKind::WriteFailure => TextError::TemplateLimit { limit: format!("{MAX_OUTPUT} bytes of output") },
        _ => TextError::TemplateRender(describe(error)),
    }
}

fn describe(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

/// Output up to [`MAX_OUTPUT`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_OUTPUT - self.0.len() {
            return Err(io::Error::other("the output is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
