"use strict"; // the models of the server, and the chosen one, which every request names

const NO_SERVER_YET = "The server does not answer. It may have been stopped: start it again, and load this page anew.";
let models = []; // as /v1/models lists them; the first is the default
let modelId = null; // the name of the chosen one

/** Ask which models there are. The address may name one, as in /?model=NAME; otherwise the first is chosen. */
async function greet() {
  const reply = await fetch("v1/models", { headers: headers() });
  $("key-row").hidden = reply.ok && !$("key").value;
  if (!reply.ok) return say(reply.status === 401 ? "This server asks for a key: give it among the options." : NO_SERVER_YET);
  models = (await reply.json()).data;
  offerModels();
  const named = new URLSearchParams(location.search).get("model");
  const found = models.find(({ id }) => id === named);
  useModel(found || models[0]);
  return named === null || found ? say("Ready.") : missModel(named);
}

/** A choice where there are several; the name alone where there is one. */
function offerModels() {
  const isChoice = models.length > 1;
  $("choice").replaceChildren(...models.map(({ id }) => make("option", { textContent: id })));
  $("models").hidden = !isChoice;
  $("model").hidden = isChoice;
  document.body.classList.toggle("several", isChoice);
}

/** Requests are for this model from now on; tabs and limits are those that it has. */
function useModel(model) {
  modelId = model.id;
  $("model").textContent = model.id;
  $("choice").selectedIndex = models.indexOf(model);
  offerTabs(model.labels);
  limitTokens(Math.min(model.max_model_len - 1, model.max_tokens));
}

/** The user's choice. It ends what the former model is doing, as Escape does; what is written stays. */
function chooseModel() {
  stopAll();
  const model = models[$("choice").selectedIndex];
  nameInAddress(model);
  useModel(model);
}

/** The address leads to this model again when it is loaded anew, or linked to. The first needs no name. */
function nameInAddress(model) {
  const fields = new URLSearchParams(location.search);
  if (model === models[0]) fields.delete("model");
  else fields.set("model", model.id);
  const search = String(fields);
  history.replaceState(null, "", location.pathname + (search && `?${search}`) + location.hash);
}

/** Say, on the tab that is shown, that the model which the address names is not served. */
function missModel(name) {
  nameInAddress(models[0]);
  const status = $(shownTab()).querySelector(".status");
  status.textContent = `There is no model “${name}” on this server. ${modelId} is chosen instead.`;
}

/** What came of a request; where there are several models, with the name of the one that was asked. */
const byModel = (text, id = modelId) => (models.length > 1 ? `${id}: ${text}` : text);

$("choice").addEventListener("change", chooseModel);
for (const [place, kind] of [[$("key"), "change"], [window, "DOMContentLoaded"]]) {
  place.addEventListener(kind, () => greet().catch(() => say(NO_SERVER_YET)));
}
