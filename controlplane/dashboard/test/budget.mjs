// Fails when what the first page load needs is more than the budget.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const budget = 400 * 1024;
const root = new URL("../dist/app/", import.meta.url);
const html = readFileSync(new URL("index.html", root));
const files = [...html.toString().matchAll(/(?:src|href)="(\/[^"]+\.(?:js|css))"/g)].map((m) => m[1]);
if (!files.some((f) => f.endsWith(".js") && f.startsWith("/assets/"))) {
  console.error("budget: index.html names no script");
  process.exit(1);
}
let total = gzipSync(html).length;
for (const f of files) total += gzipSync(readFileSync(new URL(`.${f}`, root))).length;
console.log(`first load: ${(total / 1024).toFixed(0)} KiB gzip in ${files.length + 1} files, budget ${budget / 1024} KiB`);
if (total > budget) process.exit(1);
