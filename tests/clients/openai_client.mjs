// The official `openai` package for JavaScript against a running server, whose address is the argument.

import assert from "node:assert/strict";

import OpenAI from "openai";

const base = process.argv[2];
if (!base) {
  console.error("usage: openai_client.mjs http://HOST:PORT");
  process.exit(2);
}
const client = new OpenAI({ baseURL: `${base.replace(/\/$/, "")}/v1`, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What does a mutex do?" }];
const chat = (options = {}) => client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0, ...options });

const schema = {
  type: "object",
  properties: { safe: { type: "boolean" }, size: { type: "string", enum: ["small", "large"] } },
  required: ["safe", "size"],
  additionalProperties: false,
};
const parameters = { type: "object", properties: { city: { type: "string", enum: ["Paris", "Oslo"] } }, required: ["city"], additionalProperties: false };
const tool = { type: "function", function: { name: "weather", description: "The weather", parameters } };

const checks = {
  async chat() {
    const answer = await chat();
    assert.equal(answer.choices[0].message.role, "assistant");
    assert.ok(answer.choices[0].message.content);
    assert.ok(answer.usage.completion_tokens <= 12);
  },
  async stream() {
    const whole = (await chat()).choices[0].message.content;
    let text = "";
    for await (const chunk of await chat({ stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
    assert.equal(text, whole);
  },
  async leaving_a_stream() {
    const stream = await chat({ stream: true, max_tokens: 500 });
    for await (const _ of stream) break;
    assert.ok((await chat({ max_tokens: 2 })).choices.length);
  },
  async tools() {
    const answer = await chat({ tools: [tool], tool_choice: "required", max_tokens: 200 });
    const call = answer.choices[0].message.tool_calls[0];
    assert.equal(call.function.name, "weather");
    assert.ok(["Paris", "Oslo"].includes(JSON.parse(call.function.arguments).city));
  },
  async json_schema() {
    const response_format = { type: "json_schema", json_schema: { name: "review", schema, strict: true } };
    const answer = await chat({ response_format, max_tokens: 200 });
    const value = JSON.parse(answer.choices[0].message.content);
    assert.deepEqual(Object.keys(value).sort(), ["safe", "size"]);
    assert.equal(typeof value.safe, "boolean");
  },
  async embeddings() {
    const input = ["a red apple", "a page table entry"];
    const { data } = await client.embeddings.create({ model, input });
    assert.equal(data.length, 2);
    assert.ok(data[0].embedding.length > 0 && data[0].embedding.length === data[1].embedding.length);
  },
  async responses() {
    const answer = await client.responses.create({ model, input: "What is a heap?", max_output_tokens: 16 });
    assert.ok(answer.output_text);
  },
  async errors() {
    await assert.rejects(chat({ model: "no-such-model" }), OpenAI.NotFoundError);
    await assert.rejects(chat({ messages: [] }), OpenAI.BadRequestError);
    await assert.rejects(chat({ temperature: "hot" }), OpenAI.BadRequestError);
    assert.ok((await chat({ max_tokens: 2 })).choices.length, "the server goes on");
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`  ok    javascript ${name}`);
  } catch (e) {
    failed++;
    console.log(`  FAIL  javascript ${name}\n${e.stack}`);
  }
}
console.log(`javascript: ${Object.keys(checks).length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
