"use strict"; // the tab Surprisal: how little the model expected each word of a text

const BIN = 2; // bits
const N_BINS = 8; // the last one has no end
const RANKS = [1, 10, 100, 1000, Infinity]; // the last rank of each group
const N_LIKELIEST = 8; // alternatives of a token
const N_SHOWN = 4; // tokens of a word whose alternatives are shown
let measuring = null; // the AbortController of a request under way
let measured = null; // the result that is shown

async function measure() {
  if (measuring) measuring.abort();
  const control = (measuring = new AbortController());
  const text = $("text").value;
  setMeasuring(true);
  clearMeasured();
  showWait($("measured"), "Measuring …");
  const start = performance.now();
  try {
    const body = JSON.stringify({ model: modelId, input: text, top: N_LIKELIEST, stream: true });
    const reply = await ask("surprisal", body, control.signal, "Measure");
    for await (const event of events(reply.body)) {
      if (event.queued) showWait($("measured"), inLine(event.queued));
      if (event.progress !== undefined) tellProgress(event.progress, text.length, performance.now() - start);
      if (event.results) showMeasured(event.results[0], (performance.now() - start) / 1000);
    }
  } catch (error) {
    if (control === measuring) endMeasuring(control.signal.aborted ? null : error.message);
  } finally {
    if (control === measuring) {
      measuring = null;
      setMeasuring(false);
    }
  }
}

function setMeasuring(busy) {
  $("measured").setAttribute("aria-busy", busy);
  $("stop-measuring").disabled = !busy;
  for (const name of ["save-words", "save-tokens"]) $(name).disabled = busy || !measured;
}

function clearMeasured() {
  measured = null;
  hideTip();
  $("measured").replaceChildren();
  for (const name of ["numbers", "histogram", "ranks"]) $(name).replaceChildren();
  $("summary").classList.add("idle");
  $("measure-status").textContent = "\u00a0";
}

function tellProgress(share, n, milliseconds) {
  const rate = (share * n * 1000) / milliseconds;
  showWait($("measured"), `Measuring … ${Math.round(share * 100)} %, ${round(rate)} characters/s`);
}

function endMeasuring(message) {
  $("measured").replaceChildren(...(message ? [make("span", { className: "wrong", textContent: message })] : []));
  $("measure-status").textContent = message ? "That did not work." : "Stopped.";
}

// what is shown ------------------------------------------------------------------------------------------------------

function showMeasured(result, seconds) {
  measured = result;
  const letters = [...result.text]; // spans count characters, not UTF-16 units
  const nodes = [];
  let at = 0;
  for (const one of result.words) {
    nodes.push(letters.slice(at, one.span[0]).join(""), measuredWord(one, !at));
    at = one.span[1];
  }
  $("measured").replaceChildren(...nodes, letters.slice(at).join(""));
  const n = result.tokens.length;
  $("measure-status").textContent = byModel(`${counted(n, "token")} in ${seconds.toFixed(1)} s, ${round(n / seconds)} tokens/s`);
  $("summary").classList.remove("idle");
  showNumbers(result);
  showHistogram(result.words);
  showRanks(result.tokens);
}

function measuredWord(one, isFirst) {
  const element = make("b", { className: tint(one.surprisal), textContent: one.text, tabIndex: isFirst ? 0 : -1 });
  element.bin = bin(one.surprisal);
  element.explain = () => explain(one);
  return element;
}

const bin = (bits) => (bits === null ? null : Math.min(N_BINS - 1, Math.floor(Math.max(0, bits) / BIN)));
const tint = (bits) => (bin(bits) ? `u${bin(bits) + 1}` : "u0");

/** What the tip says of a word: its bits, and of each token its rank and what was likelier. */
function explain(one) {
  const tokens = measured.tokens.slice(...one.tokens);
  const bits = one.surprisal === null ? "not scored" : `${one.surprisal.toFixed(1)} bits: ${chance(one.surprisal)}`;
  const nodes = [make("p", { className: "bits", textContent: bits })];
  const n = tokens.length > 1 ? N_LIKELIEST / 2 : N_LIKELIEST;
  for (const token of tokens.slice(0, N_SHOWN)) {
    if (token.surprisal === null) continue;
    const rank = `rank ${round(token.rank)}, ${token.surprisal.toFixed(1)} bits`;
    nodes.push(make("p", {}, make("code", { textContent: visible(token.text) }), ` ${rank}`));
    nodes.push(bars(likeliest(token, n), token.id));
  }
  if (tokens.length > N_SHOWN) nodes.push(make("p", { textContent: `and ${tokens.length - N_SHOWN} tokens more` }));
  return nodes;
}

const chance = (bits) => (bits < 4 ? percent(2 ** -bits) : `one in ${round(2 ** bits)}`);

/** Alternatives as [text, probability, id]; the token itself is always there. */
function likeliest(token, n) {
  const pairs = token.top.slice(0, n).map((one) => [one.text, 2 ** -one.surprisal, one.id]);
  if (!pairs.some(([, , id]) => id === token.id)) pairs.push([token.text, 2 ** -token.surprisal, token.id]);
  return pairs;
}

function showNumbers(result) {
  const scored = result.words.filter((one) => one.surprisal !== null);
  const perWord = scored.reduce((sum, one) => sum + one.surprisal, 0) / scored.length;
  const numbers = [
    ["perplexity", result.perplexity === null ? "–" : result.perplexity < 1e6 ? precise(result.perplexity) : result.perplexity.toExponential(1)],
    ["words", round(result.words.length)],
    ["tokens", round(result.tokens.length)],
    ["bits", precise(result.total)],
    ["bits a word", scored.length ? perWord.toFixed(2) : "–"],
    ["bits a character", (result.total / [...result.text].length).toFixed(2)],
  ];
  $("numbers").replaceChildren(...numbers.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
}

/** A bar for every two bits; one that is pointed at or chosen by key keeps its words and pales the others. */
function showHistogram(words) {
  const counts = Array(N_BINS).fill(0);
  for (const one of words) if (one.surprisal !== null) counts[bin(one.surprisal)] += 1;
  const most = Math.max(1, ...counts);
  const columns = counts.map((n, index) => {
    const from = index * BIN;
    const range = index === N_BINS - 1 ? `${from} bits and more` : `${from} to ${from + BIN} bits`;
    const bar = make("i", { className: tint(from), hidden: !n });
    bar.style.height = `${(n / most) * 100}%`;
    const label = make("small", { textContent: index === N_BINS - 1 ? `${from}+` : from });
    const count = make("span", { textContent: n || "" });
    const column = make("button", { type: "button", title: `${range}: ${counted(n, "word")}` }, make("span", { className: "well" }, count, bar), label);
    column.setAttribute("aria-label", `${range}: ${counted(n, "word")}`);
    for (const kind of ["mouseenter", "focus"]) column.addEventListener(kind, () => keepBin(index));
    for (const kind of ["mouseleave", "blur"]) column.addEventListener(kind, () => keepBin(null));
    return column;
  });
  $("histogram").replaceChildren(...columns);
}

function keepBin(index) {
  for (const element of $("measured").querySelectorAll("b")) element.classList.toggle("beyond", index !== null && element.bin !== index);
}

function showRanks(tokens) {
  const scored = tokens.filter((one) => one.rank !== null);
  const list = make("dl", { className: "bars" });
  RANKS.forEach((last, index) => {
    const first = index ? RANKS[index - 1] + 1 : 1;
    const share = scored.filter((one) => one.rank >= first && one.rank <= last).length / (scored.length || 1);
    const name = last === Infinity ? `above ${round(first - 1)}` : first === last ? "1" : `to ${round(last)}`;
    const value = share ? `${Math.max(1, Math.round(share * 100))} %` : "0 %";
    const bar = make("dd", { className: "bar", ariaHidden: "true" });
    if (share) bar.append(fill(share));
    list.append(make("dt", { textContent: name }), bar, make("dd", { textContent: value }));
  });
  $("ranks").replaceChildren(list);
}

const round = (n) => (n < 1e15 ? Math.round(n).toLocaleString("en") : n.toExponential(0));
const precise = (n) => n.toLocaleString("en", { maximumFractionDigits: n < 100 ? 2 : n < 1000 ? 1 : 0 });
const counted = (n, noun) => `${round(n)} ${noun}${n === 1 ? "" : "s"}`;

// what is saved: the columns of `gpt2-edge surprisal --tsv` ----------------------------------------------------------

function wordsAsTsv() {
  const lines = measured.words.map((one, index) => ["-", index, ...one.span, one.text, decimal(one.surprisal)]);
  return asTsv(["source", "index", "begin", "end", "word", "surprisal"], lines);
}

function tokensAsTsv() {
  const lines = measured.tokens.map((one, index) =>
    ["-", index, ...one.span, one.text, one.id, decimal(one.surprisal), one.rank, decimal(one.entropy)]);
  return asTsv(["source", "index", "begin", "end", "token", "id", "surprisal", "rank", "entropy"], lines);
}

const decimal = (value) => (value === null ? null : value.toFixed(6));

function asTsv(columns, lines) {
  return [columns, ...lines].map((cells) => `${cells.map(cell).join("\t")}\n`).join("");
}

/** A value without a tab or a line end; nothing for null. */
function cell(value) {
  if (value === null) return "";
  return String(value).replaceAll("\\", "\\\\").replaceAll("\t", "\\t").replaceAll("\n", "\\n").replaceAll("\r", "\\r");
}

function save(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "text/tab-separated-values" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

$("measure").addEventListener("click", measure);
$("stop-measuring").addEventListener("click", () => measuring && measuring.abort());
$("save-words").addEventListener("click", () => save("words.tsv", wordsAsTsv()));
$("save-tokens").addEventListener("click", () => save("tokens.tsv", tokensAsTsv()));
listen($("measured"));
clearMeasured();
