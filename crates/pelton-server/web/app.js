// The chat page of `pelton serve`: one conversation over /v1/chat/completions, kept in this browser.
// Invariant: text from the model, from files and from the server enters the page as text nodes only, never as HTML.

const $ = (id) => document.getElementById(id);
const MAX_FILE_BYTES = 1 << 20;
const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

// ---- what is kept -------------------------------------------------------------------------------------------------

function load(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    notice("This conversation is too long for the browser to keep: it is lost when the page closes.");
  }
}

// {role: "user", content, files: [{name, text}]} or {role: "assistant", content, reasoning, figures, error, stopped}
let messages = load("pelton.messages", []);
if (!Array.isArray(messages)) messages = [];
let settings = load("pelton.settings", {});
let attached = [];
let running = null; // the AbortController of the answer that streams

// ---- small parts --------------------------------------------------------------------------------------------------

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function notice(text) {
  $("notice").textContent = text ?? "";
  $("notice").hidden = !text;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function copyButton(text) {
  return el("button", { type: "button", class: "quiet", onclick: (e) => copy(text, e.currentTarget) }, "Copy");
}

function number(n, digits = 0) {
  return n.toLocaleString("en", { maximumFractionDigits: digits });
}

// ---- Markdown, the part of it that models write ---------------------------------------------------------------------

const INLINE = new RegExp(
  [
    "(?<fence>`+)(?<code>.+?)\\k<fence>(?!`)",
    "\\*\\*(?<bold>\\S(?:.*?\\S)?)\\*\\*",
    "~~(?<gone>\\S(?:.*?\\S)?)~~",
    "\\*(?<em>[^\\s*](?:[^*]*[^\\s*])?)\\*",
    "(?<![\\w_])_(?<em2>[^\\s_](?:[^_]*[^\\s_])?)_(?![\\w_])",
    "\\[(?<label>[^\\]]+)\\]\\((?<target>[^\\s()]+)\\)",
    "(?<url>https?://[^\\s<>\"')\\]]*[^\\s<>\"')\\].,;:!?])",
  ].join("|"),
  "su",
);

function link(target, children) {
  if (!/^(https?:|mailto:)/i.test(target)) return children;
  return [el("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, ...children)];
}

function inline(text) {
  const out = [];
  for (;;) {
    const found = INLINE.exec(text);
    if (!found) break;
    if (found.index) out.push(text.slice(0, found.index));
    const g = found.groups;
    if (g.code !== undefined) out.push(el("code", {}, g.code.replace(/^ (.*) $/s, "$1")));
    else if (g.bold) out.push(el("strong", {}, ...inline(g.bold)));
    else if (g.gone) out.push(el("s", {}, ...inline(g.gone)));
    else if (g.em ?? g.em2) out.push(el("em", {}, ...inline(g.em ?? g.em2)));
    else if (g.label) out.push(...link(g.target, inline(g.label)));
    else out.push(...link(g.url, [g.url]));
    text = text.slice(found.index + found[0].length);
  }
  if (text) out.push(text);
  return out;
}

function codeBlock(language, code) {
  const bar = el("div", { class: "bar" }, el("span", {}, language || "text"), copyButton(code));
  return el("div", { class: "code" }, bar, el("pre", { tabindex: "0" }, el("code", {}, code)));
}

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function startsBlock(line) {
  return !line.trim() || FENCE.test(line) || ITEM.test(line) || RULE.test(line) || HEADING.test(line) || /^ {0,3}>/.test(line);
}

// Blocks of `lines` as nodes. Unfinished ones, as in a stream, are shown as far as they go.
function blocks(lines, depth = 0) {
  const out = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (!line.trim()) {
      i++;
    } else if (fence) {
      const end = new RegExp(`^ {0,3}${fence[2][0]}{${fence[2].length},}\\s*$`);
      const code = [];
      for (i++; i < lines.length && !end.test(lines[i]); i++) code.push(lines[i].replace(new RegExp(`^ {0,${fence[1].length}}`), ""));
      i++;
      out.push(codeBlock(fence[3].trim().split(/\s/)[0], code.join("\n")));
    } else if (heading) {
      out.push(el(`h${Math.min(6, heading[1].length + 1)}`, {}, ...inline(heading[2])));
      i++;
    } else if (RULE.test(line)) {
      out.push(el("hr"));
      i++;
    } else if (/^ {0,3}>/.test(line) && depth < 8) {
      const inner = [];
      for (; i < lines.length && /^ {0,3}>/.test(lines[i]); i++) inner.push(lines[i].replace(/^ {0,3}> ?/, ""));
      out.push(el("blockquote", {}, ...blocks(inner, depth + 1)));
    } else if (ITEM.test(line) && depth < 8) {
      const [list, next] = listAt(lines, i, depth);
      out.push(list);
      i = next;
    } else if (line.includes("|") && TABLE_LINE.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      const head = el("tr", {}, ...cells(line).map((cell) => el("th", {}, ...inline(cell))));
      const body = el("tbody");
      for (i += 2; i < lines.length && lines[i].includes("|"); i++) {
        body.append(el("tr", {}, ...cells(lines[i]).map((cell) => el("td", {}, ...inline(cell)))));
      }
      out.push(el("div", { class: "table" }, el("table", {}, el("thead", {}, head), body)));
    } else {
      const text = [line];
      for (i++; i < lines.length && !startsBlock(lines[i]); i++) text.push(lines[i]);
      out.push(el("p", {}, ...inline(text.join("\n").trim())));
    }
  }
  return out;
}

// The list that begins at line `i`, and the line after it.
function listAt(lines, i, depth) {
  const [, indent, mark] = ITEM.exec(lines[i]);
  const ordered = /\d/.test(mark);
  const list = el(ordered ? "ol" : "ul", ordered && mark.slice(0, -1) !== "1" ? { start: parseInt(mark, 10) } : {});
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length > indent.length + 1 || item[1].length < indent.length || /\d/.test(item[2]) !== ordered) break;
    const within = item[1].length + item[2].length + 1;
    const inner = [item[3]];
    for (i++; i < lines.length; i++) {
      const line = lines[i];
      const deeper = /^\s*/.exec(line)[0].length >= Math.min(within, indent.length + 2);
      if (line.trim() ? !deeper : !(lines[i + 1] ?? "").startsWith(" ".repeat(indent.length + 2))) break;
      inner.push(line.replace(new RegExp(`^\\s{0,${within}}`), ""));
    }
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1] ?? "")) i++;
    const children = blocks(inner, depth + 1);
    // An item of one line needs no paragraph.
    list.append(el("li", {}, ...children.flatMap((c, n) => (n === 0 && c.tagName === "P" ? [...c.childNodes] : [c]))));
  }
  return [list, i];
}

function markdown(text) {
  return blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"));
}

// ---- the conversation -----------------------------------------------------------------------------------------------

function figuresLine(f) {
  const parts = [];
  if (f.tokens !== undefined) parts.push(`${number(f.tokens)} ${f.tokens === 1 ? "token" : "tokens"}`);
  if (f.perSecond) parts.push(`${number(f.perSecond, f.perSecond < 100 ? 1 : 0)} tokens/s`);
  if (f.firstMs !== undefined) parts.push(`first token after ${f.firstMs < 1000 ? `${number(f.firstMs)} ms` : `${number(f.firstMs / 1000, 1)} s`}`);
  if (f.promptTokens !== undefined) {
    const cached = f.cached === undefined ? "" : `, ${number(f.cached)} cached`;
    parts.push(`prompt of ${number(f.promptTokens)}${cached}`);
  }
  if (f.drafted) parts.push(`${number(f.accepted)} of ${number(f.drafted)} guesses right`);
  if (f.finish === "length") parts.push("cut at the longest answer");
  if (f.route) parts.push(f.route);
  return parts.join(" · ");
}

function userNode(message) {
  const files = (message.files ?? []).map((f) =>
    el("details", { class: "file" }, el("summary", {}, `${f.name} (${number(f.text.length)} characters)`), el("pre", { tabindex: "0" }, f.text)),
  );
  return el("article", { class: "user", "aria-label": "You" }, ...files, el("div", { class: "plain" }, message.content));
}

function fillAnswer(node, message, isLast) {
  const streaming = isLast && running !== null;
  const thought = node.querySelector("details.thought")?.open;
  const children = [];
  if (message.reasoning) {
    const open = thought ?? (streaming && !message.content);
    const label = streaming && !message.content ? "Thinking…" : "Thoughts";
    children.push(el("details", { class: "thought", open }, el("summary", {}, label), ...markdown(message.reasoning)));
  }
  children.push(...markdown(message.content));
  if (streaming && !message.content && !message.reasoning) {
    children.push(el("p", { class: "waiting" }, message.waiting ?? "…"));
  }
  if (message.error) children.push(el("p", { class: "error", role: "alert" }, message.error));
  if (!streaming) {
    const line = el("div", { class: "figures" });
    const said = [message.figures && figuresLine(message.figures), message.stopped && "stopped"].filter(Boolean).join(" · ");
    if (said) line.append(el("span", {}, said));
    const buttons = el("span", { class: "buttons" });
    if (message.content) buttons.append(copyButton(message.content));
    if (isLast) buttons.append(el("button", { type: "button", class: "quiet", id: "again", onclick: regenerate }, message.error ? "Try again" : "Regenerate"));
    if (buttons.hasChildNodes()) line.append(buttons);
    children.push(line);
  }
  node.replaceChildren(...children);
  node.setAttribute("aria-busy", streaming);
}

function render() {
  const nodes = messages.map((message, i) => {
    if (message.role === "user") return userNode(message);
    const node = el("article", { class: "answer", "aria-label": "Answer" });
    fillAnswer(node, message, i === messages.length - 1);
    return node;
  });
  $("log").replaceChildren(...nodes);
  $("empty").hidden = messages.length > 0;
}

function atBottom() {
  return innerHeight + scrollY >= document.documentElement.scrollHeight - 60;
}

function toBottom() {
  scrollTo(0, document.documentElement.scrollHeight);
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
}

// ---- requests -------------------------------------------------------------------------------------------------------

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

async function failure(response) {
  let said = "";
  try {
    const body = await response.json();
    said = body.error?.message ?? body.error ?? "";
  } catch {
    // A body that is not JSON says nothing to people.
  }
  if (response.status === 401) {
    openSettings(true);
    $("key").focus();
    return "This server asks for an API key: type it in the settings, then try again.";
  }
  const wait = response.status === 429 && response.headers.get("retry-after");
  return `${said || `The server answered ${response.status} ${response.statusText}`}${wait ? ` Try again in ${wait} s.` : ""}`;
}

function content(message) {
  const files = (message.files ?? []).map(({ name, text }) => {
    const runs = text.match(/`{3,}/g) ?? [];
    const fence = "`".repeat(Math.max(3, ...runs.map((run) => run.length + 1)));
    return `File ${name}:\n${fence}\n${text.replace(/\n$/, "")}\n${fence}\n\n`;
  });
  return files.join("") + message.content;
}

function requestBody() {
  const system = $("system").value.trim();
  // An answer that failed before its first word is no part of the conversation.
  const said = messages.slice(0, -1).filter((m) => m.role === "user" || m.content);
  const turns = said.map((m) => ({ role: m.role, content: content(m) }));
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    stream: true,
    stream_options: { include_usage: true },
  };
  if ($("model").value) body.model = $("model").value;
  for (const name of SAMPLING) {
    const value = $(name).valueAsNumber;
    if (Number.isFinite(value)) body[name] = value;
  }
  return body;
}

// The data of each server-sent event of a body.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
  }
}

function figures(state, chunk) {
  const t = chunk.timings ?? {};
  const usage = chunk.usage ?? {};
  const seconds = (performance.now() - state.firstAt) / 1000;
  const tokens = t.predicted_tokens ?? usage.completion_tokens ?? state.pieces;
  return {
    tokens,
    perSecond: t.predicted_per_second ?? (tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : undefined),
    firstMs: t.ttft_ms ?? (state.firstAt ? state.firstAt - state.sentAt : undefined),
    promptTokens: t.prompt_tokens ?? usage.prompt_tokens,
    cached: t.cached_tokens ?? usage.prompt_tokens_details?.cached_tokens,
    drafted: t.drafted_tokens,
    accepted: t.accepted_tokens,
    finish: state.finish,
    route: t.route && `answered by ${chunk.model}: ${t.route.why}`,
  };
}

function take(message, state, chunk) {
  if (chunk.error) throw new Error(chunk.error.message ?? "The server reported an error.");
  const choice = chunk.choices?.[0];
  const { content: text, reasoning_content: thought } = choice?.delta ?? {};
  if (text || thought) {
    state.pieces++;
    state.firstAt ||= performance.now();
    message.content += text ?? "";
    if (thought) message.reasoning = (message.reasoning ?? "") + thought;
  }
  if (choice?.finish_reason) state.finish = choice.finish_reason;
  if (chunk.usage || chunk.timings) message.figures = { ...message.figures, ...figures(state, chunk) };
}

// Asks for the last message, which is an empty answer, and streams into it.
async function answer() {
  const message = messages.at(-1);
  const controller = new AbortController();
  setRunning(controller);
  notice();
  render();
  toBottom();
  const node = $("log").lastElementChild;
  let due = false;
  const show = () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      if (running !== controller) return;
      const follow = atBottom();
      fillAnswer(node, message, true);
      if (follow) toBottom();
    });
  };
  const watch = setInterval(() => watchLoading(message, show), 1000);
  const state = { sentAt: performance.now(), firstAt: 0, pieces: 0, finish: null };
  try {
    const body = JSON.stringify(requestBody());
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body, signal: controller.signal });
    if (!response.ok) throw new Error(await failure(response));
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      take(message, state, JSON.parse(data));
      show();
    }
    if (!state.finish) throw new Error("The answer broke off: the connection was closed.");
  } catch (e) {
    if (controller.signal.aborted) message.stopped = true;
    else message.error = e instanceof TypeError ? "The server cannot be reached." : e.message;
    if (state.firstAt) message.figures ??= figures(state, {});
  }
  clearInterval(watch);
  delete message.waiting;
  const follow = atBottom();
  setRunning(null);
  fillAnswer(node, message, true);
  if (follow) toBottom();
  keep("pelton.messages", messages);
  if (!$("settings").contains(document.activeElement)) $("prompt").focus();
}

function send() {
  const text = $("prompt").value.trim();
  if (running || (!text && attached.length === 0)) return;
  messages.push({ role: "user", content: text, files: attached }, { role: "assistant", content: "" });
  attached = [];
  showAttached();
  $("prompt").value = "";
  grow();
  keep("pelton.messages", messages.slice(0, -1));
  answer();
}

function regenerate() {
  if (running) return;
  messages[messages.length - 1] = { role: "assistant", content: "" };
  answer();
}

// ---- models -----------------------------------------------------------------------------------------------------------

async function fetchModels() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw new Error(await failure(response));
  return (await response.json()).data ?? [];
}

async function showModels() {
  try {
    const models = await fetchModels();
    const chosen = $("model").value || settings.model;
    const label = (m) => (m.status && m.status !== "loaded" ? `${m.id} (${m.status === "unloaded" ? "not loaded" : m.status})` : m.id);
    $("model").replaceChildren(...models.map((m) => el("option", { value: m.id }, label(m))));
    if (models.some((m) => m.id === chosen)) $("model").value = chosen;
    notice();
  } catch (e) {
    notice(e instanceof TypeError ? "The server cannot be reached." : e.message);
  }
}

// While nothing comes, says how far the model is loaded.
async function watchLoading(message, show) {
  if (message.content || message.reasoning) return;
  try {
    const model = (await fetchModels()).find((m) => m.id === $("model").value);
    const share = typeof model?.progress === "number" ? ` ${Math.round(model.progress * 100)} %` : "";
    message.waiting = model?.status === "loading" ? `Loading ${model.id}${share}` : "…";
    show();
  } catch {
    // The request that waits will say what is wrong.
  }
}

// ---- files ------------------------------------------------------------------------------------------------------------

async function attachFiles(list) {
  for (const file of list) {
    if (file.size > MAX_FILE_BYTES) {
      notice(`${file.name} is larger than 1 MiB.`);
      continue;
    }
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (text.includes("\0")) throw new TypeError();
      attached.push({ name: file.name, text });
    } catch {
      notice(`${file.name} is not a text file (UTF-8).`);
    }
  }
  showAttached();
  $("prompt").focus();
}

function showAttached() {
  const remove = (i) => () => {
    attached.splice(i, 1);
    showAttached();
    $("prompt").focus();
  };
  const chip = (f, i) =>
    el("li", {}, f.name, el("button", { type: "button", class: "quiet", "aria-label": `Remove ${f.name}`, onclick: remove(i) }, "×"));
  $("files").replaceChildren(...attached.map(chip));
  $("files").hidden = attached.length === 0;
}

// ---- settings and colours -----------------------------------------------------------------------------------------------

function openSettings(open) {
  $("settings").hidden = !open;
  $("open-settings").setAttribute("aria-expanded", open);
}

function keepSettings() {
  settings = { model: $("model").value, system: $("system").value };
  for (const name of SAMPLING) settings[name] = $(name).value;
  keep("pelton.settings", settings);
  sessionStorage.setItem("pelton.key", $("key").value);
}

function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme-name").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[theme];
}

function grow() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight + 2, innerHeight * 0.4)}px`;
}

// ---- start --------------------------------------------------------------------------------------------------------------

let theme = load("pelton.theme", "auto");
if (!["auto", "light", "dark"].includes(theme)) theme = "auto";
applyTheme(theme);
$("theme").addEventListener("click", () => {
  theme = { auto: "light", light: "dark", dark: "auto" }[theme];
  keep("pelton.theme", theme);
  applyTheme(theme);
});

for (const name of ["system", ...SAMPLING]) $(name).value = settings[name] ?? "";
$("key").value = sessionStorage.getItem("pelton.key") ?? "";
$("settings-form").addEventListener("submit", (e) => e.preventDefault());
$("settings-form").addEventListener("change", keepSettings);
$("key").addEventListener("change", showModels);
$("model").addEventListener("change", keepSettings);
$("open-settings").addEventListener("click", () => {
  openSettings($("settings").hidden);
  if (!$("settings").hidden) $("system").focus();
});

$("composer").addEventListener("submit", (e) => {
  e.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault();
    send();
  }
});
$("prompt").addEventListener("input", grow);
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (e) => {
  if (e.key !== "Escape") return;
  if (running) running.abort();
  else if (!$("settings").hidden) openSettings(false);
  $("prompt").focus();
});
$("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  keep("pelton.messages", messages);
  notice();
  render();
  $("prompt").focus();
});

$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  await attachFiles($("file").files);
  $("file").value = "";
});
document.addEventListener("dragover", (e) => e.preventDefault());
document.addEventListener("drop", (e) => {
  e.preventDefault();
  attachFiles(e.dataTransfer.files);
});

// A page that was closed in the midst of an answer kept only the question.
if (messages.at(-1)?.role === "user") messages.push({ role: "assistant", content: "", error: "There is no answer yet." });
render();
toBottom();
showModels();
