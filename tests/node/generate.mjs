// Greedy ids that transformers.js writes after each prompt, as JSON: node generate.mjs FOLDER N PROMPT...
import { existsSync } from "node:fs";
import path from "node:path";
import { env, AutoModelForCausalLM, AutoTokenizer } from "@huggingface/transformers";

const [folder, n, ...prompts] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + path.sep;
const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
// In the layout of transformers.js nothing has to be said.
const options = existsSync(path.join(folder, "onnx"))
  ? {}
  : {
      subfolder: "", // the graph is beside config.json, not in onnx/
      dtype: "fp32", // the name model.onnx; what the weights are is in the graph
      use_external_data_format: 1,
    };
const model = await AutoModelForCausalLM.from_pretrained(name, options);
const written = [];
for (const prompt of prompts) {
  const inputs = tokenizer(prompt);
  const ids = await model.generate({ ...inputs, max_new_tokens: Number(n), do_sample: false });
  written.push(ids.slice(null, [inputs.input_ids.dims[1], null]).tolist()[0].map(Number));
}
console.log(JSON.stringify(written));
