// The web page in headless Chromium against a running server: page.mjs http://HOST:PORT [FOLDER FOR SCREENSHOTS].
// CHROMIUM names the browser's program.

import assert from "node:assert/strict";
import path from "node:path";

import { chromium } from "playwright-core";

const [base, shots] = [process.argv[2]?.replace(/\/$/, ""), process.argv[3]];
if (!base) {
  console.error("usage: page.mjs http://HOST:PORT [FOLDER]");
  process.exit(2);
}
const args = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args });

const complaints = [];
const elsewhere = [];
async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 850 }, ...options });
  const page = await context.newPage();
  page.on("console", (m) => m.type() === "error" && complaints.push(m.text()));
  page.on("pageerror", (e) => complaints.push(String(e)));
  page.on("request", (r) => r.url().startsWith(base) || r.url().startsWith("data:") || elsewhere.push(r.url()));
  await page.goto(base);
  await page.waitForSelector("#model option", { state: "attached" });
  return page;
}
async function ask(page, text) {
  await page.fill("#prompt", text);
  await page.press("#prompt", "Enter");
  await page.waitForSelector("#again", { timeout: 120_000 });
}
const shot = (page, name) => shots && page.screenshot({ path: path.join(shots, `page-${name}.png`) });
const last = (page, selector) => page.locator(`article:last-child ${selector}`);

const checks = {
  async answers_have_their_figures() {
    const page = await open({ colorScheme: "light" });
    await page.click("#open-settings");
    await page.fill("#max_tokens", "60");
    await page.fill("#temperature", "0");
    await page.keyboard.press("Escape");
    await ask(page, "What does this function do?\nfn add(a: u32, b: u32) -> u32 { a + b }");
    assert.match(await last(page, ".figures").innerText(), /\d+ tokens? · [\d.,]+ tokens\/s · first token after .* · prompt of \d+, \d+ cached/);
    await shot(page, "light");
    const first = await page.locator("article.answer").first().innerText();
    await page.click("#again");
    await page.waitForSelector("#again", { timeout: 120_000 });
    assert.equal(await page.locator("article").count(), 2, "regenerating replaces the answer");
    assert.equal(first.split("\n")[0], (await page.locator("article.answer").first().innerText()).split("\n")[0], "greedy is greedy");
    await page.reload();
    await page.waitForSelector("#again");
    assert.equal(await page.locator("article").count(), 2, "a reload keeps the conversation");
    await page.click("#new");
    assert.equal(await page.locator("article").count(), 0);
    await page.context().close();
  },
  async files_are_read_and_sent() {
    const page = await open({ colorScheme: "dark" });
    await page.setInputFiles("#file", [
      { name: "add.rs", mimeType: "text/plain", buffer: Buffer.from("fn add(a: u32, b: u32) -> u32 {\n    a + b\n}\n") },
      { name: "picture.bin", mimeType: "image/png", buffer: Buffer.from([0xff, 0xfe, 0x00]) },
    ]);
    await page.waitForSelector("#files li");
    assert.match(await page.innerText("#notice"), /picture\.bin is not a text file/);
    const sent = page.waitForRequest(/chat\/completions/);
    await ask(page, "Describe it.\nOne sentence.");
    const { messages, stream } = (await sent).postDataJSON();
    assert.equal(messages.at(-1).content, "File add.rs:\n```\nfn add(a: u32, b: u32) -> u32 {\n    a + b\n}\n```\n\nDescribe it.\nOne sentence.");
    assert.equal(stream, true);
    await shot(page, "dark");
    await page.context().close();
  },
  async an_answer_can_be_stopped_by_keyboard() {
    const page = await open();
    await page.route("**/v1/chat/completions", async (route) => {
      await new Promise((done) => setTimeout(done, 1500));
      await route.continue().catch(() => {});
    });
    await page.fill("#prompt", "A question");
    await page.press("#prompt", "Shift+Enter");
    await page.type("#prompt", "of two lines");
    await page.press("#prompt", "Enter");
    await page.waitForSelector("#stop:not([hidden])");
    await page.keyboard.press("Escape");
    await page.waitForSelector("#again");
    assert.match(await last(page, ".figures").innerText(), /stopped/);
    assert.equal(await page.locator("article.user .plain").innerText(), "A question\nof two lines");
    assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
    await page.context().close();
  },
  async answers_are_text_and_never_html() {
    const page = await open();
    const said = [
      "<img src=x onerror=alert(1)> **bold** `a<b>` [x](javascript:alert(1)) [y](https://example.com)",
      "", "```html", "<script>alert(1)</script>", "```", "", "- one", "  - two", "", "| a | b |", "|---|---|", "| 1 | 2 |",
    ].join("\n");
    const chunk = (o) => `data: ${JSON.stringify(o)}\n\n`;
    const body = chunk({ choices: [{ delta: { content: said } }] }) + chunk({ choices: [{ delta: {}, finish_reason: "stop" }] }) + "data: [DONE]\n\n";
    await page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }));
    await ask(page, "<b>not bold</b>");
    assert.equal(await page.locator("article img, article script, article.user b").count(), 0);
    assert.equal(await page.locator("article.user .plain").innerText(), "<b>not bold</b>");
    assert.deepEqual(await page.locator("article.answer a").evaluateAll((all) => all.map((a) => a.href)), ["https://example.com/"]);
    assert.equal(await page.innerText(".code pre"), "<script>alert(1)</script>");
    assert.equal(await page.locator("article.answer li li").innerText(), "two");
    assert.equal(await page.locator("article.answer td").count(), 2);
    await page.context().close();
  },
  async errors_are_said() {
    const page = await open();
    const refuse = (status, headers, message) =>
      page.route("**/v1/chat/completions", (r) => r.fulfill({ status, headers, json: { error: { message } } }), { times: 1 });
    await refuse(429, { "retry-after": "3" }, "The queue is full.");
    await ask(page, "One");
    assert.equal(await last(page, ".error").innerText(), "The queue is full. Try again in 3 s.");
    await refuse(401, {}, "No key.");
    await page.click("#again");
    await page.waitForSelector("#again");
    assert.equal(await page.evaluate(() => document.activeElement.id), "key", "the key is asked for");
    await page.fill("#key", "abc");
    const sent = page.waitForRequest(/chat\/completions/);
    await page.click("#again");
    assert.equal(await (await sent).headerValue("authorization"), "Bearer abc");
    await page.waitForSelector("#again", { timeout: 120_000 });
    await page.context().close();
    complaints.splice(0, complaints.length, ...complaints.filter((c) => !/status of (429|401)/.test(c)));
  },
  async colours_follow_the_system_and_the_button() {
    const page = await open({ colorScheme: "dark", viewport: { width: 390, height: 760 } });
    const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const dark = await paper();
    await page.click("#theme");
    const light = await paper();
    assert.notEqual(dark, light);
    await page.reload();
    assert.equal(await paper(), light, "the choice is kept");
    await page.click("#theme");
    assert.equal(await paper(), dark);
    await ask(page, "What does a mutex do?");
    await shot(page, "narrow");
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `the narrow page is ${overflow} pixels too wide`);
    await page.context().close();
  },
  async nothing_went_wrong_or_elsewhere() {
    assert.deepEqual(complaints, []);
    assert.deepEqual(elsewhere, []);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(`  ok    page ${name}`);
  } catch (e) {
    failed++;
    console.log(`  FAIL  page ${name}\n${e.stack}`);
  }
}
console.log(`page: ${Object.keys(checks).length - failed} passed, ${failed} failed`);
await browser.close();
process.exit(failed ? 1 : 0);
