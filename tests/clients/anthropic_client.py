"""The official `anthropic` package against a running server."""

import json
import urllib.request

import anthropic

import checks

BASE = checks.base_url()
client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0, timeout=120)
with urllib.request.urlopen(BASE + "/v1/models") as listing:
    MODEL = json.load(listing)["data"][0]["id"]
HELLO = [{"role": "user", "content": "What does a mutex do?"}]
TOOL = {"name": "weather", "description": "The weather", "input_schema": checks.WEATHER}


# The package has no argument for it any more; the wire has.
GREEDY = {"temperature": 0}


def ask(**options):
    return client.messages.create(**{"model": MODEL, "max_tokens": 12, "messages": HELLO, **options})


def check_message():
    answer = ask(system="Be brief.")
    assert answer.type == "message" and answer.role == "assistant" and answer.id, answer
    assert answer.content[0].type == "text" and answer.content[0].text, answer
    assert answer.stop_reason in ("end_turn", "max_tokens"), answer
    assert answer.usage.input_tokens > 0 and 1 <= answer.usage.output_tokens <= 12, answer.usage


def check_blocks_and_turns():
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "What is a heap?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A tree."}]},
        {"role": "user", "content": "And a stack?"},
    ]
    assert ask(messages=turns, system=[{"type": "text", "text": "Be brief."}]).content[0].text


def check_stream():
    whole = ask(extra_body=GREEDY).content[0].text
    with client.messages.stream(model=MODEL, max_tokens=12, messages=HELLO, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole and final.content[0].text == whole, (text, whole)
    assert final.stop_reason in ("end_turn", "max_tokens") and final.usage.output_tokens <= 12, final


def check_stream_events():
    kinds = [event.type for event in ask(stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop", kinds
    for kind in ("content_block_start", "content_block_delta", "content_block_stop", "message_delta"):
        assert kind in kinds, kinds


def check_stop_sequences():
    text = ask(extra_body=GREEDY, max_tokens=30).content[0].text
    word = next(w for w in text.split() if len(w) > 2)
    answer = ask(extra_body=GREEDY, max_tokens=30, stop_sequences=[word])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == word, answer


def check_tools():
    answer = ask(tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}, max_tokens=200)
    call = next(block for block in answer.content if block.type == "tool_use")
    assert call.name == "weather" and call.input["city"] in ("Paris", "Oslo") and answer.stop_reason == "tool_use", answer
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees"}
    turns = [*HELLO, {"role": "assistant", "content": [call.model_dump()]}, {"role": "user", "content": [result]}]
    assert ask(messages=turns, tools=[TOOL]).stop_reason


def check_tools_streamed():
    options = {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 200}
    with client.messages.stream(model=MODEL, messages=HELLO, **options) as stream:
        final = stream.get_final_message()
    call = next(block for block in final.content if block.type == "tool_use")
    assert call.input["city"] in ("Paris", "Oslo"), final


def check_count_tokens():
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO).input_tokens
    usage = ask().usage
    read = usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert counted == read, (counted, usage)


def check_errors():
    missing = checks.fails_with(anthropic.NotFoundError, lambda: ask(model="no-such-model"))
    assert missing.body["type"] == "error" and missing.body["error"]["type"] == "not_found_error", missing.body
    bad = checks.fails_with(anthropic.BadRequestError, lambda: ask(messages=[{"role": "wizard", "content": "x"}]))
    assert bad.body["error"]["type"] == "invalid_request_error" and bad.body["error"]["message"], bad.body
    checks.fails_with(anthropic.BadRequestError, lambda: ask(max_tokens=0))
    checks.fails_with(anthropic.BadRequestError, lambda: ask(messages=[]))
    assert ask(max_tokens=2).content, "the server goes on"


checks.run("anthropic", globals())
