"use strict"; // the tab Classify: which label fits a text; it is there when the model has labels

let classifying = null; // the AbortController of a request under way

async function classify() {
  if (classifying) classifying.abort();
  const control = (classifying = new AbortController());
  const text = $("to-classify").value;
  $("stop-classifying").disabled = false;
  showWait($("labels"), "Classifying …");
  $("classify-status").textContent = "";
  const start = performance.now();
  try {
    const reply = await ask("classify", JSON.stringify({ model: modelId, input: text }), control.signal, "Classify");
    const [result] = (await reply.json()).results;
    $("labels").replaceChildren(...(result.scores ? ofText(result) : ofTokens(text, result.spans)));
    $("classify-status").textContent = byModel(`${((performance.now() - start) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (control === classifying) $("labels").replaceChildren();
    if (!control.signal.aborted) $("labels").append(make("span", { className: "wrong", textContent: error.message }));
    if (control === classifying) $("classify-status").textContent = control.signal.aborted ? "Stopped." : "That did not work.";
  } finally {
    if (control === classifying) {
      classifying = null;
      $("stop-classifying").disabled = true;
    }
  }
}

/** The label of a whole text, and the probabilities of all; a regression has values, which are no probabilities. */
function ofText({ label, scores }) {
  const isRegression = scores.length === 1 || scores.some(({ score }) => score < 0 || score > 1);
  if (isRegression) return scores.map((one) => make("p", { className: "label", textContent: `${one.label}: ${one.score.toPrecision(4)}` }));
  const pairs = scores.map((one) => [one.label, one.score]);
  return [make("p", { className: "label", textContent: label }), bars(pairs, label, null, String)];
}

/** The text, its labelled parts marked; spans count characters, not UTF-16 units. */
function ofTokens(text, spans) {
  const letters = [...text];
  const nodes = [];
  let at = 0;
  for (const one of spans) {
    nodes.push(letters.slice(at, one.span[0]).join(""), labelledPart(one, !nodes.length));
    at = one.span[1];
  }
  return [...nodes, letters.slice(at).join("")];
}

function labelledPart(one, isFirst) {
  const element = make("b", { className: "part", tabIndex: isFirst ? 0 : -1 }, one.text, make("small", { textContent: one.label }));
  element.explain = () => [make("p", { className: "bits", textContent: `${one.label}, ${percent(one.score)}` })];
  return element;
}

/** A model with labels is a classifier, which writes and measures nothing: it has this tab alone; others have theirs. */
function offerTabs(labels) {
  const classifies = Boolean(labels && labels.length);
  $("tab-classify").hidden = !classifies;
  for (const name of ["tab-write", "tab-surprisal"]) $(name).hidden = classifies;
  showAddressedTab();
}

listen($("labels"));
$("find-label").addEventListener("click", classify);
$("stop-classifying").addEventListener("click", () => classifying && classifying.abort());
