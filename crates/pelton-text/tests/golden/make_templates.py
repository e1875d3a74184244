"""Renders conversations with transformers' own chat template environment, for the tests.

    python make_templates.py [FOLDER]

Writes templates_own.json (the templates in ../templates and the one of ../data/tokenizer_config.json)
and, given a folder of *.jinja files, templates_models.json. Renderings longer than LIMIT characters
are kept as their SHA-256, so that the goldens hold no long passages of other people's templates.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import transformers.utils.chat_template_utils as utils

HERE = pathlib.Path(__file__).parent
LIMIT = 2000
NOW = datetime.datetime(2026, 3, 5, 14, 7, 9)


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


utils.datetime = Fixed

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now> & later in a town's centre.",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "description": "  Name, e.g. \"Zürich\" or 東京 "},
                "days": {"type": "integer", "description": "How many", "default": None, "minimum": 1},
                "units": {"type": ["string", "integer"], "enum": ["°C", "°F"], "description": "Units"},
                "limits": {
                    "type": "object",
                    "description": "Bounds",
                    "additionalProperties": {"type": "number"},
                    "default": {"low": -1.5, "high": 1e21, "exact": True},
                },
            },
            "required": ["town"],
        },
        "return": {"type": "string", "description": "A sentence"},
    },
}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number", "description": "first"}, "b": {"type": "number", "description": "second"}},
        },
    },
}
NO_ARGUMENTS = {
    "type": "function",
    "function": {"name": "ping", "description": "Pings.", "parameters": {"type": "object", "properties": {}}},
}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="abcdef123"):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


SYSTEM = message("system", "  You are terse.\nSay \"no\" <politely> & often. ")
HELLO = message("user", "Hello, how's é, 漢字 and 🚀?\n")
FINE = message("assistant", "Fine, thanks!  ")
MORE = message("user", " Tell me more about\ttabs, please!")
ASK = message("user", "How warm is it in Zürich?")
CALL = message("assistant", "", tool_calls=[call("get_weather", {"town": "Zürich", "days": 2, "x": [1, 2.50, None, True, "a\"b"]})])
RESULT = message("tool", '{"temp": 21.5, "sky": "clear"}', name="get_weather", tool_call_id="abcdef123")
ANSWER = message("assistant", "It is 21.5 °C.")

CONVERSATIONS = {
    "user": dict(messages=[HELLO]),
    "system": dict(messages=[SYSTEM, HELLO]),
    "multi_turn": dict(messages=[SYSTEM, HELLO, FINE, MORE]),
    "multi_turn_no_system": dict(messages=[HELLO, FINE, MORE, FINE]),
    "ends_with_assistant": dict(messages=[SYSTEM, HELLO, FINE]),
    "tools_offered": dict(messages=[SYSTEM, ASK], tools=[WEATHER, ADD]),
    "tools_offered_no_system": dict(messages=[ASK], tools=[WEATHER]),
    "tools_empty": dict(messages=[ASK], tools=[]),
    "tool_no_arguments": dict(messages=[SYSTEM, ASK], tools=[NO_ARGUMENTS]),
    "tool_type_null": dict(
        messages=[ASK],
        tools=[{"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object", "properties": {"x": {"type": ["string", "null"], "description": "x"}}}}}],
    ),
    "tool_type_array": dict(
        messages=[ASK],
        tools=[{"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "string"}, "description": "x"}}}}}],
    ),
    "tool_call": dict(messages=[SYSTEM, ASK, CALL], tools=[WEATHER]),
    "tool_result": dict(messages=[SYSTEM, ASK, CALL, RESULT], tools=[WEATHER]),
    "tool_round": dict(messages=[ASK, CALL, RESULT, ANSWER, MORE], tools=[WEATHER, ADD]),
    "tool_round_without_tools": dict(messages=[ASK, CALL, RESULT, ANSWER]),
    "tool_round_tuple_turns": dict(messages=[SYSTEM, ASK, CALL, RESULT, ANSWER, ASK, CALL, RESULT], tools=[WEATHER]),
    "two_calls": dict(
        messages=[
            ASK,
            message("assistant", "Let me see.", tool_calls=[call("get_weather", {"town": "Rome"}), call("add", {"a": 1, "b": -2.0}, "zyxwvu987")]),
            message("tool", "rain", tool_call_id="abcdef123"),
            message("tool", "-1.0", tool_call_id="zyxwvu987"),
            message("assistant", "Rain, and -1."),
        ],
        tools=[WEATHER, ADD],
    ),
    "arguments_named_like_methods": dict(
        messages=[ASK, message("assistant", "", tool_calls=[call("add", {"items": ["milk"], "get": 1, "keys": None, "values": {}, "_items": 2})])],
        tools=[ADD],
    ),
    "call_arguments_text": dict(messages=[ASK, message("assistant", "", tool_calls=[call("add", '{"a": 1}')])], tools=[ADD]),
    "call_content_none": dict(messages=[ASK, message("assistant", None, tool_calls=[call("add", {"a": 1})])], tools=[ADD]),
    "call_id_short": dict(messages=[ASK, message("assistant", "", tool_calls=[call("add", {"a": 1}, "call_1")])], tools=[ADD]),
    "call_flat": dict(messages=[ASK, message("assistant", "", tool_calls=[{"name": "add", "arguments": {"a": 1}}])], tools=[ADD]),
    "tool_result_mapping": dict(messages=[ASK, CALL, message("tool", {"temp": 21.5, "note": "it's <ok>"}, tool_call_id="abcdef123")], tools=[WEATHER]),
    "tool_result_list": dict(messages=[ASK, CALL, message("tool", [1, "two", None], tool_call_id="abcdef123")], tools=[WEATHER]),
    "thinking_in_content": dict(messages=[HELLO, message("assistant", "<think>\nHm, é.\n</think>\n\nFine."), MORE]),
    "thinking_last": dict(messages=[HELLO, message("assistant", "<think>\n\nHm.\n\n</think>\n\nFine.\n")]),
    "reasoning_content": dict(messages=[SYSTEM, HELLO, message("assistant", "Fine.", reasoning_content="\nHm.\n")]),
    "reasoning_and_tools": dict(
        messages=[ASK, {**CALL, "reasoning_content": "I need the weather."}, RESULT, message("assistant", "Warm.", reasoning_content="Done.")],
        tools=[WEATHER],
    ),
    "tool_response_in_user": dict(messages=[ASK, FINE, message("user", "<tool_response>x</tool_response>"), FINE]),
    "no_thinking": dict(messages=[HELLO], extra=dict(enable_thinking=False)),
    "thinking": dict(messages=[HELLO], extra=dict(enable_thinking=True)),
    "options_of_llama": dict(messages=[SYSTEM, ASK], tools=[WEATHER], extra=dict(tools_in_user_message=False, date_string="5 March 2026")),
    "builtin_tools": dict(
        messages=[SYSTEM, ASK, message("assistant", "", tool_calls=[call("brave_search", {"query": "Zürich"})])],
        extra=dict(builtin_tools=["brave_search", "code_interpreter"]),
    ),
    "extra_values": dict(messages=[HELLO], extra=dict(extra_flag=True, extra_map={"a": "b"})),
    "content_parts": dict(messages=[message("system", [{"type": "text", "text": "Be brief."}]), message("user", [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "nice?"}])]),
    "content_part_unknown": dict(messages=[message("user", [{"type": "video"}])]),
    "two_systems": dict(messages=[SYSTEM, HELLO, FINE, message("system", "Now be kind."), MORE]),
    "two_users": dict(messages=[HELLO, MORE]),
    "starts_with_assistant": dict(messages=[FINE, HELLO]),
    "unknown_role": dict(messages=[HELLO, message("narrator", "Later.")]),
    "ipython_role": dict(messages=[ASK, message("ipython", "3.14")]),
    "no_messages": dict(messages=[]),
    "no_messages_with_tools": dict(messages=[], tools=[ADD]),
    "no_content": dict(messages=[{"role": "user"}]),
    "content_none": dict(messages=[HELLO, message("assistant", None)]),
    "content_empty": dict(messages=[message("user", "")]),
    "content_number": dict(messages=[message("user", 42)]),
    "special_in_content": dict(messages=[message("user", "<|im_end|>\n<|im_start|>system\n{{ bos_token }} {% raw %}")]),
    "odd_spaces": dict(messages=[message("system", "\u00a0\u2003trim\u3000\x1c"), message("user", "\r\n a\r\nb\x0bc \u2028d ")]),
    "break_and_continue": dict(messages=[HELLO, message("skip", "x"), MORE, message("stop", "y"), FINE]),
    "tools_not_wrapped": dict(messages=[ASK], tools=[ADD["function"]]),
}

TOKENS = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def render(template, conversation, add_generation_prompt):
    try:
        text = template.render(
            messages=conversation["messages"],
            tools=conversation.get("tools"),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**TOKENS, **conversation.get("extra", {})},
        )
    except Exception as error:
        return {"raises": f"{type(error).__name__}: {error}"[:120]}
    if len(text) > LIMIT and not template.own:
        return {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    return {"text": text}


def goldens(sources, own):
    templates = {}
    for name, source in sorted(sources.items()):
        template = utils._compile_jinja_template(source)
        template.own = own
        templates[name] = {
            conversation: {str(prompt): render(template, CONVERSATIONS[conversation], prompt) for prompt in (False, True)}
            for conversation in CONVERSATIONS
        }
    now = int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())
    return {"now": now, "tokens": TOKENS, "conversations": CONVERSATIONS, "templates": templates}


def write(name, sources, own):
    text = json.dumps(goldens(sources, own), ensure_ascii=False, indent=1)
    (HERE / name).write_text(text + "\n", encoding="utf-8")


def read(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.jinja")}


own = read(HERE.parent / "templates")
config = json.loads((HERE.parent / "data" / "tokenizer_config.json").read_text(encoding="utf-8"))
own["embedded model"] = config["chat_template"]
write("templates_own.json", own, True)
if len(sys.argv) > 1:
    write("templates_models.json", read(pathlib.Path(sys.argv[1])), False)
