"use strict"; // what page.js shows: the text, its tokens, and what else was likely

const $ = (id) => document.getElementById(id);

/** The sheet that is written on: the prompt, the words that a branch keeps, and a word for each token. */
class Sheet {
  constructor(prompt, branch) {
    this.prompt = prompt;
    this.text = "";
    this.end = null;
    this.n = 0;
    this.shown = []; // [word, where its text begins, in this.text]
    this.held = []; // tokens that are parts of a character, until its last comes
    this.start = performance.now();
    this.first = null;
    hideTip();
    $("answer").hidden = true;
    $("output").replaceChildren(make("span", { className: "prompt", textContent: prompt }));
    this.branches = !chosenTask(); // a task's text cannot be given back to it
    for (const shown of branch ? branch.words : []) this.show(shown);
    say("Reading the prompt …");
    $("speed").textContent = "\u00a0";
  }

  add(choice) {
    const atEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 4;
    const letters = [...choice.text]; // offsets count characters, not UTF-16 units
    const tokens = read(choice.logprobs);
    const begin = tokens.length ? tokens[0].offset : 0;
    tokens.forEach((token, index) => {
      const next = index + 1 < tokens.length ? tokens[index + 1].offset : begin + letters.length;
      this.write(letters.slice(token.offset - begin, next - begin).join(""), token);
    });
    if (!tokens.length && choice.text) this.write(choice.text, null);
    this.n += tokens.length;
    if (choice.finish_reason) this.end = choice;
    this.tellSpeed();
    if (atEnd) scrollTo(0, document.documentElement.scrollHeight);
  }

  write(text, token) {
    if (token) this.held.push(token);
    if (!text) return;
    this.show(word(text, this.held, !this.shown.length));
    this.held = [];
  }

  show(element) {
    this.shown.push([$("output").appendChild(element), this.text.length]);
    this.text += element.textContent;
  }

  /** All that stands on the sheet but for notes. */
  get whole() {
    const parts = [...$("output").childNodes].filter((node) => !node.classList || !node.matches(".wrong, .empty"));
    return parts.map((node) => node.textContent).join("");
  }

  tellSpeed() {
    const now = performance.now();
    if (this.first === null) {
      this.first = now;
      this.before = this.n;
    }
    const rate = ((this.n - this.before) * 1000) / (now - this.first);
    if (this.n - this.before > 4) $("speed").textContent = `${rate.toFixed(0)} tokens/s`;
    say(`${this.n} ${this.n === 1 ? "token" : "tokens"}`);
  }

  finish(told) {
    const ended = this.end && this.end.gpt2_edge;
    const seconds = ((performance.now() - this.start) / 1000).toFixed(1);
    if (ended) this.showAnswer(ended);
    if (!this.text && !(ended && ended.answer)) this.note("empty", "Nothing: the model ended the text at once.");
    const why = { eos: "end of text", stop: "stop", length: "max_tokens", context: "end of the context", deadline: "time" };
    if (ended && ended.probabilities) return say(`${seconds} s`);
    return say(told || `${this.n} tokens in ${seconds} s; ended by ${why[ended && ended.finish_reason] || "the server"}`);
  }

  showAnswer(ended) {
    if (ended.answer == null) return;
    const at = this.text.indexOf(ended.answer);
    if (at >= 0)
      for (const [shown, begin] of this.shown)
        shown.classList.toggle("beyond", begin + shown.textContent.trimEnd().length <= at || begin >= at + ended.answer.length);
    const told = ended.confidence == null ? "the answer" : `the answer, with a probability of ${percent(ended.confidence)}`;
    const options = Object.entries(ended.probabilities || {});
    if (options.length) this.fillIn(ended.answer);
    $("answer").replaceChildren(
      make("small", { textContent: told }),
      options.length ? bars(options, ended.answer) : ended.answer || "None.",
    );
    $("answer").hidden = false;
  }

  /** The option that was chosen, in its place. */
  fillIn(option) {
    const [before, after] = promptText().split(/(?<!\w)_+(?!\w)/);
    const filled = make("span", { className: "filled", textContent: option });
    $("output").replaceChildren(after === undefined ? `${before} ` : before, filled, after || "");
  }

  fail(message) {
    this.note("wrong", message);
    say("That did not work.");
  }

  note(className, textContent) {
    $("output").append(make("span", { className, textContent }));
  }
}

/** Tokens of a chunk. */
function read(logprobs) {
  return (logprobs ? logprobs.tokens : []).map((name, index) => ({
    name,
    offset: logprobs.text_offset[index],
    probability: Math.exp(logprobs.token_logprobs[index]),
    top: Object.entries(logprobs.top_logprobs[index]).map(([other, logprob]) => [other, Math.exp(logprob)]),
  }));
}

/** A word of the text: one token, or the several that are one character. */
function word(text, tokens, isFirst) {
  if (!tokens.length) return make("span", { textContent: text });
  const probability = tokens.reduce((product, token) => product * token.probability, 1);
  const unsure = Math.min(8, Math.floor(-Math.log(probability) * 1.6));
  const ends = /^\s*\n\s*$/.test(text) ? " ends" : ""; // only ends a line: without a mark there is nothing to point at
  const element = make("b", { className: `u${unsure}${ends}`, textContent: text, tabIndex: isFirst ? 0 : -1 });
  element.tokens = tokens;
  return element;
}

function say(text) {
  $("status").textContent = text;
}

function make(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const visible = (name) => name.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥");

function percent(probability) {
  const value = probability * 100;
  return value >= 99.95 ? "> 99.9 %" : value >= 9.95 ? `${value.toFixed(0)} %` : value >= 0.01 ? `${value.toPrecision(2)} %` : "< 0.01 %";
}

function fill(share) {
  const element = make("i", {});
  element.style.width = `${Math.max(1, share * 100)}%`;
  return element;
}

/** Probabilities as bars, the highest first; `pick`, where it is given, is called with the name that is clicked. */
function bars(pairs, chosen, pick) {
  const list = make("dl", { className: "bars" });
  for (const [name, probability] of pairs.sort((one, other) => other[1] - one[1])) {
    const className = name === chosen ? "chosen" : "";
    const term = make("dt", { className, title: name });
    const isText = !/^bytes:|^<\|.*\|>$/.test(name); // parts of a character and ends of text cannot be written on from
    if (pick && isText) term.append(make("button", { type: "button", textContent: visible(name), onclick: () => pick(name) }));
    else term.textContent = visible(name);
    list.append(
      term,
      make("dd", { className: "bar", ariaHidden: "true" }, fill(probability)),
      make("dd", { className, textContent: percent(probability) }),
    );
  }
  return list;
}

// what else the model considered -------------------------------------------------------------------------------------

let tipped = null; // the word whose alternatives are shown
let hiding = 0; // the timer of a tip that the pointer has left

function showTip(element) {
  keepTip();
  if (tipped === element && !$("tip").hidden) return;
  const tip = $("tip");
  const token = element.tokens[0];
  const pick = sheet && sheet.branches ? (name) => continueFrom(element, name) : null;
  const how = matchMedia("(hover: none)").matches ? "tap" : "click";
  const told = pick ? `what the model considered here; ${how} one to go on from it` : "what the model considered here";
  tip.replaceChildren(make("p", { textContent: told }), bars(token.top.slice(), token.name, pick));
  tip.hidden = false;
  tipped = element;
  const place = element.getClientRects()[0];
  const left = Math.max(8, Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 8));
  const below = place.bottom + 6;
  const fits = below + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${fits ? below : Math.max(8, place.top - tip.offsetHeight - 6)}px`;
  element.setAttribute("aria-describedby", "tip");
}

function hideTip() {
  keepTip();
  $("tip").hidden = true;
  tipped = null;
}

/** Not at once: the pointer may be on its way to an alternative. */
function hideTipSoon() {
  keepTip();
  hiding = setTimeout(hideTip, 300);
}

function keepTip() {
  clearTimeout(hiding);
}

/** Back to the word, where the keyboard was among its alternatives. */
function leaveTip() {
  const back = $("tip").contains(document.activeElement) ? tipped : null;
  hideTip();
  if (!back) return;
  back.focus();
  hideTip(); // the focus showed it again
}

function moveInTip(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const choices = [...$("tip").querySelectorAll("button")];
  const next = choices[choices.indexOf(document.activeElement) + step];
  if (!step || !next) return;
  event.preventDefault();
  next.focus();
}

function moveFocus(event) {
  const first = $("tip").querySelector("button");
  if ((event.key === "Enter" || event.key === "ArrowDown") && event.target.tokens && first && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    return first.focus();
  }
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const words = [...$("output").querySelectorAll("b")];
  const at = words.indexOf(document.activeElement);
  if (!step || at < 0 || !words[at + step]) return undefined;
  event.preventDefault();
  words[at].tabIndex = -1;
  words[at + step].tabIndex = 0;
  return words[at + step].focus();
}
