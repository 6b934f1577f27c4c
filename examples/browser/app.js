// The page: the model is in worker.js, so that the page stays awake while it computes.

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const loading = new Map(); // bytes of each file: [so far, in all]
let current = null; // the request under way

/** Resolves when the model is there, with { seconds, threads, bytes }. */
export const ready = new Promise((resolve, reject) => {
  worker.onerror = (event) => reject(new Error(event.message));
  worker.onmessage = ({ data }) => {
    if (data.kind === "progress") showDownload(data);
    if (data.kind === "ready") resolve({ ...data, bytes: [...loading.values()].reduce((sum, [, all]) => sum + all, 0) });
    if (data.kind === "failed" && !current) reject(new Error(data.message));
    if (current) current(data);
  };
});

/** Text of a prompt's continuation, its ids, and the tokens of a second; `tell` gets the text as it comes. */
export async function generate(prompt, options, tell = () => {}) {
  await ready;
  let text = "";
  return new Promise((resolve, reject) => {
    current = (data) => {
      if (data.kind === "text") tell((text += data.text));
      if (data.kind === "failed") reject(new Error(data.message));
      if (data.kind === "done") resolve({ text, ids: data.ids, rate: data.rate });
    };
    worker.postMessage({ prompt, options });
  }).finally(() => (current = null));
}

function showDownload({ file, loaded, total }) {
  loading.set(file, [loaded, total]);
  const pairs = [...loading.values()];
  const loadedBytes = pairs.reduce((sum, [soFar]) => sum + soFar, 0);
  const allBytes = pairs.reduce((sum, [, all]) => sum + all, 0);
  $("progress").value = loadedBytes / allBytes;
  $("status").textContent = `Loading the model: ${(loadedBytes / 1e6).toFixed(1)} of ${(allBytes / 1e6).toFixed(1)} MB`;
}

async function write(event) {
  event.preventDefault();
  const prompt = $("prompt").value;
  const start = performance.now();
  let n = 0;
  $("go").disabled = true;
  $("stop").disabled = false;
  $("output").textContent = prompt;
  try {
    const sampled = { do_sample: true, temperature: 0.8, top_p: 0.9 };
    const options = { max_new_tokens: 120, ...($("greedy").checked ? { do_sample: false } : sampled) };
    const done = await generate(prompt, options, (text) => {
      n += 1;
      $("output").textContent = prompt + text;
      $("status").textContent = `${((n * 1000) / (performance.now() - start)).toFixed(0)} tokens/s`;
    });
    $("status").textContent = `${done.ids.length} tokens, ${done.rate.toFixed(1)} tokens/s`;
  } catch (error) {
    $("status").textContent = error.message;
  }
  $("go").disabled = false;
  $("stop").disabled = true;
}

$("form").addEventListener("submit", write);
$("stop").addEventListener("click", () => worker.postMessage({ stop: true }));
ready.then(
  ({ seconds, threads, bytes }) => {
    $("progress").hidden = true;
    $("go").disabled = false;
    const where = threads > 1 ? `${threads} threads` : "1 thread";
    $("status").textContent = `Ready: ${(bytes / 1e6).toFixed(1)} MB of model in ${seconds.toFixed(1)} s, ${where}.`;
  },
  (error) => ($("status").textContent = `The model could not be loaded: ${error.message}`),
);
