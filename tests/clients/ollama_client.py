"""The official `ollama` package against a running server."""

import json

import ollama

import checks

client = ollama.Client(host=checks.base_url(), timeout=120)
MODEL = client.list().models[0].model
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does a mutex do?"}]
SHORT = {"num_predict": 12, "temperature": 0}


def chat(**options):
    return client.chat(**{"model": MODEL, "messages": HELLO, "options": SHORT, **options})


def check_list_and_show():
    assert all(m.model for m in client.list().models)
    shown = client.show(MODEL)
    assert shown.details and shown.modelinfo, shown


def check_chat():
    answer = chat()
    assert answer.done and answer.message.role == "assistant" and answer.message.content, answer
    assert answer.prompt_eval_count > 0 and 1 <= answer.eval_count <= 12 and answer.total_duration > 0, answer
    assert answer.done_reason in ("stop", "length"), answer


def check_stream_is_the_same_text():
    parts = list(chat(stream=True))
    assert parts[-1].done and not any(p.done for p in parts[:-1]), parts[-1]
    assert "".join(p.message.content or "" for p in parts) == chat().message.content


def check_generate():
    answer = client.generate(MODEL, "What is a heap?", options=SHORT)
    assert answer.response and answer.done, answer
    parts = client.generate(MODEL, "What is a heap?", options=SHORT, stream=True)
    assert "".join(p.response for p in parts) == answer.response


def check_json_schema():
    answer = chat(format=checks.SCHEMA, options={"num_predict": 200, "temperature": 0})
    checks.fits_schema(json.loads(answer.message.content))


def check_tools():
    tool = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": checks.WEATHER}}
    answer = chat(tools=[tool])
    # This dialect cannot demand a call; a model that makes one must name a tool that exists.
    assert all(c.function.name == "weather" for c in answer.message.tool_calls or []), answer
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
    result = {"role": "tool", "tool_name": "weather", "content": "21 degrees"}
    assert chat(messages=[*HELLO, call, result], tools=[tool]).done


def check_embed():
    vectors = client.embed(MODEL, ["a red apple", "a page table entry"]).embeddings
    assert len(vectors) == 2 and len(vectors[0]) == len(vectors[1]) > 0
    assert client.embed(MODEL, "a red apple").embeddings[0] == vectors[0], "company changes nothing"


def check_processes():
    assert any(m.model == MODEL for m in client.ps().models)


def check_errors():
    missing = checks.fails_with(ollama.ResponseError, lambda: chat(model="no-such-model"))
    assert missing.status_code == 404 and "no-such-model" in missing.error, missing
    bad = checks.fails_with(ollama.ResponseError, lambda: chat(format={"type": "no-such-type"}))
    assert bad.status_code == 400 and bad.error, bad
    assert chat().done, "the server goes on"


checks.run("ollama", globals())
