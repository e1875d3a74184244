"""The official `openai` package against a running server."""

import json

import openai

import checks

client = openai.OpenAI(base_url=checks.base_url() + "/v1", api_key="none", max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
HELLO = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What does a mutex do?"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": checks.WEATHER}}


def chat(**options):
    return client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 12, **options})


def check_models():
    listed = client.models.list().data
    assert listed and all(m.object == "model" for m in listed), listed
    assert client.models.retrieve(MODEL).id == MODEL


def check_chat():
    answer = chat()
    assert answer.object == "chat.completion" and answer.id and answer.model, answer
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason in ("stop", "length"), choice
    usage = answer.usage
    assert 1 <= usage.completion_tokens <= 12 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.model_extra["timings"]["predicted_tokens"] == usage.completion_tokens


def check_prompt_is_cached():
    long = [{"role": "user", "content": "What does this do? " + "let x = x + 1; " * 100}]
    chat(messages=long, max_tokens=2)
    usage = chat(messages=long, max_tokens=2).usage
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens // 2, usage


def check_stream_is_the_same_text():
    whole = chat(temperature=0).choices[0].message.content
    pieces, usage, finish = [], None, None
    for chunk in chat(temperature=0, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            pieces.append(chunk.choices[0].delta.content or "")
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    assert "".join(pieces) == whole, (pieces, whole)
    assert len(pieces) > 3 and finish in ("stop", "length") and usage.completion_tokens <= 12, (finish, usage)


def check_stream_can_be_left():
    with chat(stream=True, max_tokens=500) as stream:
        next(iter(stream))
    assert chat(max_tokens=2).choices, "the server goes on"


def check_several_answers():
    answers = chat(n=3, temperature=1.0, seed=7).choices
    assert [a.index for a in answers] == [0, 1, 2]
    again = chat(n=3, temperature=1.0, seed=7).choices
    assert [a.message.content for a in answers] == [a.message.content for a in again], "a seed gives the same answers"


def check_logprobs():
    content = chat(logprobs=True, top_logprobs=3, temperature=0, max_tokens=4).choices[0].logprobs.content
    assert 1 <= len(content) <= 4
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3, token
        assert abs(token.top_logprobs[0].logprob - token.logprob) < 1e-4, "greedy takes the likeliest"


def check_stop():
    text = chat(temperature=0, max_tokens=30).choices[0].message.content
    word = next(w for w in text.split() if len(w) > 2)
    stopped = chat(temperature=0, max_tokens=30, stop=[word]).choices[0]
    assert stopped.finish_reason == "stop" and word not in (stopped.message.content or ""), stopped
    assert text.startswith(stopped.message.content or ""), (text, stopped)


def check_json_schema():
    form = {"type": "json_schema", "json_schema": {"name": "review", "schema": checks.SCHEMA, "strict": True}}
    for temperature in (0, 1):
        choice = chat(response_format=form, max_tokens=200, temperature=temperature, seed=1).choices[0]
        assert choice.finish_reason == "stop", choice
        checks.fits_schema(json.loads(choice.message.content))
    pieces = chat(response_format=form, max_tokens=200, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in pieces if c.choices)
    checks.fits_schema(json.loads(text))


def check_tools():
    answer = chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}}, max_tokens=200)
    choice = answer.choices[0]
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.function.name == "weather" and call.id, call
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo"), call
    turn = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    result = {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'}
    assert chat(messages=[*HELLO, turn, result], tools=[TOOL]).choices[0].finish_reason


def check_tools_streamed():
    calls, finish = {}, None
    one = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    for chunk in chat(max_tokens=200, stream=True, **one):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                parts = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                parts["id"] += call.id or ""
                parts["name"] += call.function.name or ""
                parts["arguments"] += call.function.arguments or ""
    assert list(calls) == [0] and calls[0]["id"] and finish == "tool_calls", (calls, finish)
    assert calls[0]["name"] == "weather" and json.loads(calls[0]["arguments"])["city"] in ("Paris", "Oslo"), calls


def check_parallel_tool_calls():
    calls = chat(tools=[TOOL], tool_choice="required", max_tokens=200).choices[0].message.tool_calls
    assert len({call.id for call in calls}) == len(calls) >= 1, calls
    assert all(json.loads(call.function.arguments)["city"] in ("Paris", "Oslo") for call in calls), calls


def check_completions():
    answer = client.completions.create(model=MODEL, prompt="fn add(a: u32, b: u32)", max_tokens=8, temperature=0)
    assert answer.choices[0].text and answer.usage.completion_tokens <= 8, answer
    pieces = client.completions.create(model=MODEL, prompt="fn add(a: u32, b: u32)", max_tokens=8, temperature=0, stream=True)
    assert "".join(c.choices[0].text for c in pieces if c.choices) == answer.choices[0].text


def check_responses():
    answer = client.responses.create(model=MODEL, instructions="Be brief.", input="What is a heap?", max_output_tokens=16)
    assert answer.object == "response" and answer.output_text, answer
    assert answer.usage.output_tokens <= 16, answer.usage
    kinds, text = [], ""
    for event in client.responses.create(model=MODEL, input="What is a heap?", max_output_tokens=16, stream=True):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete"), kinds
    assert text, kinds


def check_embeddings():
    texts = ["a red apple", "a green apple", "a page table entry"]
    answer = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    vectors = [d.embedding for d in answer.data]
    assert [d.index for d in answer.data] == [0, 1, 2] and len({len(v) for v in vectors}) == 1, answer.usage
    assert all(abs(sum(x * x for x in v) - 1) < 1e-3 for v in vectors), "unit length"
    alone = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float").data[0].embedding
    assert alone == vectors[0], "company changes nothing"
    packed = client.embeddings.create(model=MODEL, input=texts[0]).data[0].embedding
    assert max(abs(a - b) for a, b in zip(packed, alone)) < 1e-6, "base64, which is the package's default"


def check_errors():
    bad = checks.fails_with(openai.BadRequestError, lambda: chat(temperature="hot"))
    assert bad.status_code == 400 and bad.body["message"] and bad.body["type"], bad.body
    missing = checks.fails_with(openai.NotFoundError, lambda: chat(model="no-such-model"))
    assert "no-such-model" in missing.body["message"], missing.body
    checks.fails_with(openai.BadRequestError, lambda: chat(messages=[]))
    checks.fails_with(openai.BadRequestError, lambda: chat(messages=[{"role": "wizard", "content": "x"}]))
    checks.fails_with(openai.BadRequestError, lambda: chat(max_tokens=-1))
    unknown = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no-such-type"}}}
    checks.fails_with(openai.BadRequestError, lambda: chat(response_format=unknown))
    checks.fails_with(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": "word " * 100_000}]))
    assert chat(max_tokens=2).choices, "the server goes on"


checks.run("openai", globals())
