// Ask the search of a built site, as a browser does: its own worker runs in node.
//
//     mkdocs build && node docs/search.mjs build/site "learning rate" "out of memory"
//
// Prints a line of JSON for each query: the query, and the addresses of the pages found, best first.
import fs from "node:fs";
import path from "node:path";
import vm from "node:vm";

const [site, ...queries] = process.argv.slice(2);
const workers = path.join(site, "assets/javascripts/workers");
const worker = fs.readdirSync(workers).find((name) => /^search\..*\.min\.js$/.test(name));
let receive, answer;
const scope = { console, addEventListener: (_, listener) => (receive = listener), postMessage: (data) => answer(data) };
scope.self = scope;
vm.runInNewContext(fs.readFileSync(path.join(workers, worker), "utf8"), scope);
const ask = (type, data) => new Promise((resolve) => ((answer = resolve), receive({ data: { type, data } })));

const index = JSON.parse(fs.readFileSync(path.join(site, "search/search_index.json"), "utf8"));
await ask(0, { ...index, options: {} });
for (const query of queries) {
  const { data } = await ask(2, query);
  const pages = data.items.map((sections) => sections[0].location.split("#")[0]);
  console.log(JSON.stringify([query, [...new Set(pages)]]));
}
