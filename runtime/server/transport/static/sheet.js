"use strict"; // what is shown: a text, its tokens, and what else was likely

const $ = (id) => document.getElementById(id);

/** The sheet that is written on: the prompt, the words that a branch keeps, and a word for each token. */
class Sheet {
  constructor(prompt, branch) {
    this.model = modelId;
    this.prompt = prompt;
    this.text = "";
    this.end = null;
    this.n = (branch && branch.n) || 0;
    this.shown = []; // [word, where its text begins, in this.text]
    this.held = []; // tokens that are parts of a character, until its last comes
    this.waiting = null; // what is shown until the first token comes
    this.start = performance.now();
    this.first = null;
    hideTip();
    $("answer").hidden = true;
    $("output").replaceChildren(make("span", { className: "prompt", textContent: prompt }));
    this.branches = !chosenTask(); // a task's text cannot be given back to it
    for (const shown of branch ? branch.words : []) this.show(shown);
    this.wait("Reading the prompt …");
    $("speed").textContent = "\u00a0";
  }

  wait(text) {
    say(text);
    this.waiting = showWait($("output"), text, true);
  }

  endWait() {
    if (this.waiting) this.waiting.remove();
    this.waiting = null;
  }

  add(choice) {
    this.endWait();
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
    const parts = [...$("output").childNodes].filter((node) => !node.classList || !node.matches(".wrong, .empty, .waiting, .go-on"));
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
    this.endWait();
    const ended = this.end && this.end.gpt2_edge;
    const seconds = ((performance.now() - this.start) / 1000).toFixed(1);
    if (ended) this.showAnswer(ended);
    if (!this.text && !(ended && ended.answer)) this.note("empty", "Nothing: the model ended the text at once.");
    const why = { eos: "end of text", stop: "stop", length: "max_tokens", context: "end of the context", deadline: "time" };
    if (ended && ended.probabilities) return this.tell(`${seconds} s`);
    return this.tell(told || `${this.n} tokens in ${seconds} s; ended by ${why[ended && ended.finish_reason] || "the server"}`);
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

  fail(error) {
    this.endWait();
    const canGoOn = error instanceof ConnectionError && this.branches && this.text;
    this.note("wrong", error.message === LOST && this.text ? `${LOST} What it wrote until then is above.` : error.message);
    if (canGoOn) $("output").append(make("button", { type: "button", className: "go-on", textContent: "Go on from here", onclick: goOn }));
    this.tell(canGoOn ? "The connection was lost." : "That did not work.");
  }

  /** How it ended. Another model may have been chosen since, which ends it, too. */
  tell(text) {
    say(byModel(text, this.model));
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
  element.explain = () => explainChoice(element);
  return element;
}

function say(text) {
  $("status").textContent = text;
}

/** A spinner and what is waited for, at the end of a sheet or instead of what is there. Returns the element. */
function showWait(place, text, isAfter = false) {
  const shown = place.querySelector(".waiting");
  if (shown) {
    shown.lastChild.data = text;
    return shown;
  }
  const element = make("span", { className: "waiting" }, make("i", { className: "spinner", ariaHidden: "true" }), text);
  if (isAfter) place.append(element);
  else place.replaceChildren(element);
  return element;
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

/**
 * Probabilities as bars, the highest first: pairs of a name and a probability, and a third where names are not unique.
 * pick: is called with the name that is clicked. show: how a name is written.
 */
function bars(pairs, chosen, pick, show = visible) {
  const list = make("dl", { className: "bars" });
  for (const [name, probability, key = name] of pairs.sort((one, other) => other[1] - one[1])) {
    const className = key === chosen ? "chosen" : "";
    const term = make("dt", { className, title: name });
    const isText = !/^bytes:|^<\|.*\|>$/.test(name); // parts of a character and ends of text cannot be written on from
    if (pick && isText) term.append(make("button", { type: "button", textContent: show(name), onclick: () => pick(name) }));
    else term.textContent = show(name);
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
  tip.replaceChildren(...element.explain());
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

/** What the tip says of a token that the model wrote. */
function explainChoice(element) {
  const token = element.tokens[0];
  const pick = sheet && sheet.branches ? (name) => continueFrom(element, name) : null;
  const how = matchMedia("(hover: none)").matches ? "tap" : "click";
  const told = pick ? `what the model considered here; ${how} one to go on from it` : "what the model considered here";
  return [make("p", { textContent: told }), bars(token.top.slice(), token.name, pick)];
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
  if ((event.key === "Enter" || event.key === "ArrowDown") && event.target.explain && first && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    return first.focus();
  }
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const words = [...event.currentTarget.querySelectorAll("b")];
  const at = words.indexOf(document.activeElement);
  if (!step || at < 0 || !words[at + step]) return undefined;
  event.preventDefault();
  words[at].tabIndex = -1;
  words[at + step].tabIndex = 0;
  return words[at + step].focus();
}

/** Words of this place show their tip: by pointing, by touch, and by keys. */
function listen(place) {
  place.addEventListener("keydown", moveFocus);
  for (const kind of ["mouseover", "focusin", "click"]) {
    place.addEventListener(kind, (event) => event.target.explain && !event.buttons && showTip(event.target));
  }
  leaveSoon(place);
}

function leaveSoon(place) {
  place.addEventListener("mouseout", hideTipSoon);
  place.addEventListener("focusout", (event) => $("tip").contains(event.relatedTarget) || hideTipSoon());
}

leaveSoon($("tip"));
$("tip").addEventListener("keydown", moveInTip);
for (const kind of ["mouseover", "focusin"]) $("tip").addEventListener(kind, keepTip);
addEventListener("pointerdown", (event) => event.target.explain || $("tip").contains(event.target) || hideTip());
addEventListener("scroll", hideTip, { passive: true });
