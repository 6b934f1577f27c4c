// The model: transformers.js, with the WebAssembly build of onnxruntime for processors.

import {
  AutoModelForCausalLM,
  AutoTokenizer,
  InterruptableStoppingCriteria,
  TextStreamer,
  env,
} from "./lib/transformers.web.min.js";

// Nothing comes from other servers: neither the model nor onnxruntime.
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "./"; // beside this file
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = new URL("lib/", import.meta.url).href;

// Progress is counted here: with a progress_callback transformers.js fetches each file twice, to know its size.
env.fetch = async (address, options) => {
  const response = await fetch(address, options);
  if (!response.ok || !response.body) return response;
  const file = String(address);
  const size = Number(response.headers.get("content-length"));
  let loaded = 0;
  const count = new TransformStream({
    transform(chunk, control) {
      loaded += chunk.byteLength;
      // A compressed file is longer than its transfer.
      postMessage({ kind: "progress", file, loaded, total: Math.max(size, loaded) });
      control.enqueue(chunk);
    },
  });
  return new Response(response.body.pipeThrough(count), { status: response.status, headers: response.headers });
};

const stopping = new InterruptableStoppingCriteria();

async function load() {
  const start = performance.now();
  const tokenizer = await AutoTokenizer.from_pretrained("model");
  const model = await AutoModelForCausalLM.from_pretrained("model", { device: "wasm" });
  const seconds = (performance.now() - start) / 1000;
  postMessage({ kind: "ready", seconds, threads: self.crossOriginIsolated ? env.backends.onnx.wasm.numThreads : 1 });
  return [tokenizer, model];
}

async function generate([tokenizer, model], { prompt, options }) {
  const inputs = tokenizer(prompt);
  const n_prompt = inputs.input_ids.dims[1];
  const callback_function = (text) => postMessage({ kind: "text", text });
  const streamer = new TextStreamer(tokenizer, { skip_prompt: true, skip_special_tokens: true, callback_function });
  stopping.reset();
  const start = performance.now();
  const written = await model.generate({ ...inputs, ...options, streamer, stopping_criteria: stopping });
  const ids = written.slice(null, [n_prompt, null]).tolist()[0].map(Number);
  postMessage({ kind: "done", ids, rate: (ids.length * 1000) / (performance.now() - start) });
}

const loaded = load();
let last = loaded;
loaded.catch((error) => postMessage({ kind: "failed", message: error.message }));
onmessage = ({ data }) => {
  if (data.stop) return stopping.interrupt();
  // One after the other.
  last = Promise.allSettled([last])
    .then(() => loaded)
    .then((parts) => generate(parts, data))
    .catch((error) => postMessage({ kind: "failed", message: error.message }));
  return last;
};
