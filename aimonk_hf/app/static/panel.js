// One row per attribute: a bar for the score with a movable mark for the threshold, a number box, and the state that the server decided.
// The server decides; this script shows marks where they are moved to, sends all thresholds, and drops answers to older positions.
const MANY = 60, NEAREST = 40;
const find = (selector) => element.querySelector(selector);
const rowsBox = find(".rows"), message = find(".message"), search = find(".search"), sort = find(".sort");
const PATIENCE = 3000; // milliseconds after which an answer is taken for lost
let rows = [], items = new Map(), moves = 0, sentAt = 0, outdated = false, token = "";

const clamp = (value) => Math.min(1, Math.max(0, value));
const three = (value) => value.toFixed(3);

function make(tag, className, attributes = {}, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

function makeItem(row) {
  const item = {
    box: make("div", "row", { role: "listitem" }),
    name: make("span", "name", { title: row.name }, row.name),
    state: make("span", "state"),
    score: make("span", "score"),
    track: make("div", "track"),
    fill: make("div", "fill"),
    stored: make("div", "stored", { title: "stored threshold " + three(row.stored) }),
    range: make("input", "mark", { type: "range", min: 0, max: 1, step: 0.001, "aria-label": "Threshold of " + row.name }),
    number: make("input", "number", { type: "number", min: 0, max: 1, step: 0.01, "aria-label": "Threshold of " + row.name + " as a number" }),
    why: make("button", "why", { type: "button", "aria-label": "Why " + row.name + "? Show the heat map" }, "Why?"),
  };
  item.track.append(item.fill, item.stored, item.range);
  item.box.append(item.name, item.state, item.score, item.track, item.number, item.why);
  item.stored.style.setProperty("--at", row.stored);
  item.range.addEventListener("input", () => move(row.name, Number(item.range.value)));
  item.range.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1 }[event.key];
    if (!step) return;
    event.preventDefault();
    move(row.name, clamp(Number(item.range.value) + (event.shiftKey ? step / 10 : step)));
  });
  item.number.addEventListener("input", () => {
    const value = Number(item.number.value);
    const wrong = item.number.value === "" || !(value >= 0 && value <= 1);
    item.number.toggleAttribute("aria-invalid", wrong);
    if (!wrong) move(row.name, value, item.number);
  });
  item.number.addEventListener("blur", () => {
    item.number.removeAttribute("aria-invalid");
    item.number.value = three(Number(item.range.value));
  });
  item.why.addEventListener("click", () => trigger("select", { attribute: row.name }));
  return item;
}

function itemOf(row) {
  if (!items.has(row.name)) items.set(row.name, makeItem(row));
  return items.get(row.name);
}

function placeMark(item, threshold, typing) {
  item.range.value = threshold;
  item.range.setAttribute("aria-valuetext", three(threshold));
  if (item.number !== typing && document.activeElement !== item.number) item.number.value = three(threshold);
}

function move(name, threshold, typing) {
  const row = rows.find((each) => each.name === name);
  row.threshold = Math.round(threshold * 1000) / 1000;
  placeMark(itemOf(row), row.threshold, typing);
  decide();
}

function decide() {
  moves += 1;
  send();
}

// One request at a time: its answer sends the positions that marks have been moved to since.
function send() {
  if (Date.now() - sentAt < PATIENCE) return;
  sentAt = Date.now();
  trigger("input", { thresholds: rows.map((row) => row.threshold), moves });
}

function setEvery(thresholdOf) {
  for (const row of rows) {
    row.threshold = thresholdOf(row);
    if (items.has(row.name)) placeMark(items.get(row.name), row.threshold);
  }
  decide();
}

function showRow(row) {
  const item = itemOf(row), scored = row.score !== null;
  item.fill.style.setProperty("--score", scored ? row.score : 0);
  item.score.textContent = scored ? three(row.score) : "";
  item.state.textContent = row.state + (row.close ? ", close call" : "");
  item.box.dataset.state = row.state;
  item.box.dataset.close = row.close;
  item.why.disabled = !scored;
}

function nearness(row) {
  return row.score === null ? 1 : Math.abs(row.score - row.threshold);
}

function ordered() {
  const list = [...rows];
  if (sort.value === "score") list.sort((a, b) => (b.score ?? 0) - (a.score ?? 0));
  if (sort.value === "near") list.sort((a, b) => nearness(a) - nearness(b));
  return list;
}

function layOut() {
  let list = ordered();
  const words = search.value.trim().toLowerCase(), many = rows.length > MANY;
  search.hidden = !many;
  find(".shown").hidden = !many;
  if (words) list = list.filter((row) => row.name.toLowerCase().includes(words));
  if (many && list.length > NEAREST) {
    const near = new Set([...list].sort((a, b) => nearness(a) - nearness(b)).slice(0, NEAREST));
    list = list.filter((row) => near.has(row));
  }
  find(".shown").textContent = `${list.length} of ${rows.length} shown` + (words ? "" : ", those nearest to their threshold") + "; search for the others";
  const focused = document.activeElement;
  rowsBox.replaceChildren(...list.map((row) => itemOf(row).box));
  for (const row of list) {
    showRow(row);
    placeMark(itemOf(row), row.threshold);
  }
  if (focused && rowsBox.contains(focused)) focused.focus();
}

function receive() {
  const value = props.value;
  if (!value) return;
  if (value.kind === "decided") {
    sentAt = 0;
    const late = outdated || value.moves < moves;
    outdated = false;
    if (late) return send();
  } else outdated = sentAt > 0; // the answer under way is about the image before
  const moved = new Map(rows.map((row) => [row.name, row.threshold]));
  const late = value.kind !== "decided" && moves > value.moves;
  rows = value.rows.map((row) => ({ ...row, threshold: late ? moved.get(row.name) : row.threshold }));
  message.textContent = value.message;
  message.dataset.kind = value.error ? "error" : "";
  message.setAttribute("role", value.error ? "alert" : "status");
  token = value.token;
  find(".save").hidden = !token;
  if (value.kind === "scored") layOut();
  else for (const row of rows) if (items.has(row.name)) showRow(row);
  if (late && !value.error) send();
}

async function copy() {
  const text = JSON.stringify(Object.fromEntries(rows.map((row) => [row.name, row.threshold])), null, 2);
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", "", {}, text); // no clipboard on a page without https
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  find(".copy").textContent = "Copied";
  setTimeout(() => (find(".copy").textContent = "Copy JSON"), 1500);
}

find(".reset").addEventListener("click", () => setEvery((row) => row.stored));
find(".set-all").addEventListener("click", () => {
  const value = Number(find(".all").value);
  if (find(".all").value !== "" && value >= 0 && value <= 1) setEvery(() => value);
});
find(".copy").addEventListener("click", copy);
find(".save").addEventListener("click", () => trigger("submit", { thresholds: rows.map((row) => row.threshold), moves, token }));
sort.addEventListener("change", layOut);
search.addEventListener("input", layOut);
watch("value", receive);
receive();
