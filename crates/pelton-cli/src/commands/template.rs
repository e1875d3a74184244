//! `pelton template`: a conversation, rendered as the model will see it.

use anyhow::Context as _;
use pelton::{Chat, Conversation, Model, ModelRef};
use serde_json::{Map, Value};

use crate::Usage;
use crate::args::TemplateArgs;
use crate::setup::Context;
use crate::term::print_now;

pub fn run(args: &TemplateArgs, context: &Context) -> anyhow::Result<()> {
    let file = args.conversation.display();
    let text = std::fs::read_to_string(&args.conversation).with_context(|| format!("{file}: cannot read"))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| Usage(format!("{file}: not JSON: {e}")))?;
    let mut variables = match json {
        Value::Array(_) => Map::from_iter([("messages".to_string(), json)]),
        Value::Object(map) => map,
        _ => return Err(Usage(format!("{file}: expected an array of messages or an object with `messages`")).into()),
    };
    let Some(messages @ Value::Array(_)) = variables.remove("messages") else {
        return Err(Usage(format!("{file}: `messages` is missing or not an array")).into());
    };
    let tools = variables.remove("tools").filter(|t| !t.is_null());
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
        let source = std::fs::read_to_string(name).with_context(|| format!("{name}: cannot read"))?;
        return Ok(conversation.render_with(name, &source, &args.bos, &args.eos)?);
    }
    let model = ModelRef::parse(Some(name))?;
    let store = if matches!(model, ModelRef::Hub(_)) { Some(context.store()?) } else { None };
    Ok(Chat::new(Model::open_text(&model, store.as_ref())?)?.render(conversation)?)
}
