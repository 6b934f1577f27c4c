"use strict";

const ALTERNATIVES = 8;
// name, least, most, step, at the start, off (not sent), whether it chooses what to sample from
const SLIDERS = [
  ["temperature", 0, 2, 0.05, 0.8, null, false],
  ["top_p", 0.05, 1, 0.05, 0.9, 1, true],
  ["top_k", 0, 100, 1, 0, 0, true],
  ["min_p", 0, 0.5, 0.01, 0, 0, true],
  ["typical_p", 0.05, 1, 0.05, 1, 1, true],
  ["repetition_penalty", 1, 2, 0.05, 1, 1, false],
  ["presence_penalty", 0, 2, 0.1, 0, 0, false],
  ["frequency_penalty", 0, 2, 0.1, 0, 0, false],
  ["max_tokens", 8, 512, 8, 128, null, false],
];
const TASKS = {
  "": ["Prompt", "Once upon a time there was a little mouse who"],
  summarize: ["Article", "Paste an article; the first three sentences of what follows “TL;DR:” are the summary."],
  translate: ["Sentence in English", "Where is the train station?"],
  answer: ["Question", "What do bees make?"],
  read: ["Passage", "Paste a passage, and ask about it below."],
  choose: ["Text with a blank _", "The trophy does not fit in the case because the _ is too big."],
};
const touched = new Set(); // sliders moved by hand: a task has values of its own for the others
let running = null; // the AbortController of a request under way
let sheet = null; // what is written on

// what is asked ------------------------------------------------------------------------------------------------------

const chosenTask = () => document.querySelector("input[name=task]:checked").value;
const promptText = () => $("prompt").value || (chosenTask() === "" ? TASKS[""][1] : "");

function request() {
  const task = chosenTask();
  const body = { model: modelId, prompt: promptText() };
  if (task) body.task = task;
  if (task === "translate") body.to = $("to").value;
  if (task === "read") body.question = $("question").value;
  if (task === "choose") {
    body.options = $("options").value.split(",").map((option) => option.trim()).filter(Boolean);
    return body;
  }
  for (const [name, , , , , off, isFilter] of SLIDERS) {
    const value = Number($(name).value);
    const greedy = Number($("temperature").value) === 0 && (!task || touched.has("temperature"));
    if (task ? touched.has(name) : value !== off) if (!(isFilter && greedy)) body[name] = value;
  }
  if (body.max_tokens !== undefined) body.overflow = "stop"; // the slider asks for at most so many
  if ($("seed").value !== "") body.seed = $("seed").value;
  if ($("stop-text").value !== "") body.stop = $("stop-text").value.replaceAll("\\n", "\n");
  return body;
}

/** A seed may be beyond what a JavaScript number holds, so it is put into the JSON as it is written. */
function toJson(body, indent) {
  const text = JSON.stringify(body, null, indent);
  return body.seed === undefined ? text : text.replace(/"seed":(\s?)"(\d+)"/, '"seed":$1$2');
}

// generating ---------------------------------------------------------------------------------------------------------

/**
 * Write on from the prompt, or from a branch: { prompt, words, text, n }, words that stay, their text, and of how many
 * tokens it is what the connection was lost after.
 */
async function generate(branch) {
  if (running) running.abort();
  const control = (running = new AbortController());
  const written = (sheet = new Sheet(branch ? branch.prompt : chosenTask() ? "" : promptText(), branch));
  setBusy(true);
  try {
    const body = { ...request(), stream: true };
    if (branch) body.prompt = branch.prompt + branch.text;
    if (branch && branch.n) body.max_tokens = Math.max(1, body.max_tokens - branch.n);
    if (body.task !== "choose") body.logprobs = ALTERNATIVES;
    const reply = await ask("v1/completions", toJson(body), control.signal, "Generate");
    for await (const chunk of events(reply.body)) {
      if (chunk.queued) written.wait(inLine(chunk.queued));
      for (const choice of chunk.choices || []) written.add(choice);
    }
    written.finish();
  } catch (error) {
    if (control.signal.aborted) written.finish("Stopped.");
    else written.fail(error);
  } finally {
    if (running === control) {
      running = null;
      setBusy(false);
    }
  }
}

function setBusy(busy) {
  $("output").classList.toggle("writing", busy);
  $("output").setAttribute("aria-busy", busy);
  $("stop").disabled = !busy;
  if (!busy && document.activeElement === document.body) $("go").focus();
}

/** Go on from an alternative: what stands before the word stays, and the alternative takes its place. */
function continueFrom(element, name) {
  const at = sheet.shown.findIndex(([shown]) => shown === element);
  if (at < 0) return;
  const kept = sheet.shown.slice(0, at).map(([shown]) => shown);
  const token = { ...element.tokens[0], name, probability: element.tokens[0].top.find(([other]) => other === name)[1] };
  const words = [...kept, word(name, [token], !at)];
  document.querySelector("input[name=task][value='']").checked = true;
  showTask();
  generate({ prompt: sheet.prompt, words, text: words.map((shown) => shown.textContent).join("") });
}

/** Go on from the text so far, where the connection was lost. */
function goOn() {
  generate({ prompt: sheet.prompt, words: sheet.shown.map(([shown]) => shown), text: sheet.text, n: sheet.n });
}

/** End what is under way, on every tab. */
function stopAll() {
  for (const control of [running, measuring, classifying]) if (control) control.abort();
}

// copying ------------------------------------------------------------------------------------------------------------

function asCurl() {
  const key = $("key").value ? ` \\\n  -H "Authorization: Bearer $GPT2_EDGE_API_KEY"` : "";
  const body = toJson(request(), 2).replaceAll("'", "'\\''");
  return `curl ${location.origin}/v1/completions \\\n  -H "Content-Type: application/json"${key} \\\n  -d '${body}'\n`;
}

function asPython() {
  const known = ["model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"];
  const body = request();
  const own = Object.entries(body).filter(([name]) => !known.includes(name));
  const value = (name) => (name === "seed" ? body.seed : JSON.stringify(body[name]));
  const lines = known.filter((name) => body[name] !== undefined).map((name) => `    ${name}=${value(name)},`);
  if (own.length) lines.push(`    extra_body=${JSON.stringify(Object.fromEntries(own))},`);
  const key = $("key").value ? 'os.environ["GPT2_EDGE_API_KEY"]' : '"none"';
  const first = $("key").value ? "import os\n\nfrom openai import OpenAI" : "from openai import OpenAI";
  return `${first}\n\nclient = OpenAI(base_url="${location.origin}/v1", api_key=${key})\nreply = client.completions.create(\n${lines.join("\n")}\n)\nprint(reply.choices[0].text)\n`;
}

async function copy(button, text) {
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.body.appendChild(make("textarea", { value: text })); // where the page is no secure context
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = name), 1500);
}

// the form -----------------------------------------------------------------------------------------------------------

function addSliders() {
  for (const [name, min, max, step, value] of SLIDERS) {
    const input = make("input", { type: "range", id: name });
    // wanted: what was set; the limit of a chosen model may lower the value for as long as it is chosen
    Object.assign(input, { min, max, step, defaultValue: value, value, wanted: value });
    const output = make("output", { htmlFor: name });
    const label = make("label", { htmlFor: name }, make("code", { textContent: name }));
    $("sliders").append(make("div", { className: "slider" }, label, output, input));
    input.addEventListener("input", () => {
      touched.add(name);
      input.wanted = input.value;
      showSliders();
    });
  }
}

function showSliders() {
  const task = chosenTask();
  const greedy = Number($("temperature").value) === 0 && (!task || touched.has("temperature"));
  for (const [name, , , , , off, isFilter] of SLIDERS) {
    const slider = $(name).parentElement;
    const value = Number($(name).value);
    const own = Boolean(task) && !touched.has(name);
    slider.querySelector("output").textContent = task === "choose" ? "–" : own ? "the task's" : value === off ? "off" : name === "temperature" && !value ? "greedy" : value;
    slider.classList.toggle("own", own);
    slider.classList.toggle("idle", task === "choose" || (isFilter && greedy));
  }
}

function showTask() {
  const task = chosenTask();
  const [label, example] = TASKS[task];
  document.body.dataset.chosen = task;
  $("prompt-label").textContent = label;
  $("prompt").placeholder = example;
  if (task === "choose" || task === "answer" || task === "translate") {
    if (!$("prompt").value || Object.values(TASKS).some(([, known]) => known === $("prompt").value)) $("prompt").value = example;
  } else if (Object.values(TASKS).some(([, known]) => known === $("prompt").value)) {
    $("prompt").value = "";
  }
  showSliders();
}

function reset() {
  touched.clear();
  for (const [name, , , , value] of SLIDERS) Object.assign($(name), { value, wanted: value });
  $("seed").value = $("stop-text").value = "";
  showSliders();
}

/** The slider asks for no more than the server and the model's context allow. */
function limitTokens(most) {
  const slider = $("max_tokens");
  const step = most < 16 ? 1 : 8;
  Object.assign(slider, { step, min: Math.min(step, most), max: most - (most % step), value: slider.wanted });
  showSliders();
}

addSliders();
showTask();
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
$("stop").addEventListener("click", () => running && running.abort());
$("reset").addEventListener("click", reset);
$("tasks").addEventListener("change", showTask);
$("copy-text").addEventListener("click", (event) => copy(event.currentTarget, sheet ? sheet.whole : ""));
$("copy-python").addEventListener("click", (event) => copy(event.currentTarget, asPython()));
$("copy-curl").addEventListener("click", (event) => copy(event.currentTarget, asCurl()));
addEventListener("keydown", (event) => {
  const start = { write: () => generate(), surprisal: measure, classify }[shownTab()];
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    start();
  } else if (event.key === "Escape") {
    leaveTip();
    stopAll();
  }
});
listen($("output"));
