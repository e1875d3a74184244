//! `pelton template`: a conversation, rendered as the model will see it.

use std::path::Path;

use pelton::{Chat, Conversation};
use serde_json::{Map, Value};

use crate::Usage;
use crate::args::TemplateArgs;
use crate::input::read_file;
use crate::setup::Context;
use crate::term::print_now;

pub(crate) fn run(args: &TemplateArgs, context: &Context) -> anyhow::Result<()> {
    let file = args.conversation.display();
    let text = read_file(&args.conversation, context)?;
    let json: Value = serde_json::from_str(&text).map_err(|e| Usage(format!("{file}: not JSON: {e}")))?;
    let mut variables = match json {
        Value::Array(_) => Map::from_iter([("messages".to_string(), json)]),
        Value::Object(map) => map,
        _ => return Err(Usage(format!("{file}: expected an array of messages or an object with `messages`")).into()),
    };
    let Some(messages @ Value::Array(_)) = variables.remove("messages") else {
        return Err(Usage(format!("{file}: `messages` is missing or not an array")).into());
    };
    if let Some(at) = messages.as_array().and_then(|all| all.iter().position(|m| !m.is_object())) {
        let message = &messages[at];
        return Err(Usage(format!("{file}: messages[{at}] is {message}, not an object with role and content")).into());
    }
    let tools = variables.remove("tools").filter(|t| !t.is_null());
    if let Some(other) = tools.as_ref().filter(|t| !t.is_array()) {
        return Err(Usage(format!("{file}: tools is {other}, not an array of tool definitions")).into());
    }
    let add_generation_prompt = match variables.remove("add_generation_prompt") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(b)) => b,
        Some(other) => return Err(Usage(format!("{file}: add_generation_prompt is {other}, not a boolean")).into()),
    };
    let conversation = Conversation { messages, tools, add_generation_prompt, extra: variables };
    Ok(print_now(&render(args, &conversation, context)?)?)
}

fn render(args: &TemplateArgs, conversation: &Conversation, context: &Context) -> anyhow::Result<String> {
    let name = args.model.as_str();
    if name.ends_with(".jinja") {
        let source = read_file(Path::new(name), context)?;
        return Ok(conversation.render_with(name, &source, &args.bos, &args.eos)?);
    }
    Ok(Chat::new(context.open_text(Some(name))?)?.render(conversation)?)
}
