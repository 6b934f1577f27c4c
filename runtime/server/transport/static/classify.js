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
    const reply = await ask("classify", JSON.stringify({ input: text }), control.signal, "Classify");
    const [{ label, scores }] = (await reply.json()).results;
    const pairs = scores.map((one) => [one.label, one.score]);
    $("labels").replaceChildren(make("p", { className: "label", textContent: label }), bars(pairs, label, null, String));
    $("classify-status").textContent = `${scores.length} labels in ${((performance.now() - start) / 1000).toFixed(1)} s`;
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

/** The tab is shown when the model has labels. */
function offerLabels(labels) {
  $("tab-classify").hidden = !(labels && labels.length);
  showAddressedTab();
}

$("find-label").addEventListener("click", classify);
$("stop-classifying").addEventListener("click", () => classifying && classifying.abort());
