// One row per attribute: a bar for the score with a movable mark for the threshold, a number box, and the state that the server decided.
// The server decides; this script shows marks where they are moved to, sends all thresholds, and drops answers to older positions.
const MANY = 60, NEAREST = 40, SEARCHED = 12;
const find = (selector) => element.querySelector(selector);
const panel = find(".panel"), rowsBox = find(".rows"), message = find(".message"), search = find(".search"), sort = find(".sort");
const PATIENCE = 3000; // milliseconds after which an answer is taken for lost
let rows = [], items = new Map(), moves = 0, sentAt = 0, outdated = false, token = "", filter = "all", every = false, again = false, told = {};
let agreed = false, marks = new Map(); // of this image: the label that a mark means, by attribute

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
    box: make("div", "row", { role: "listitem", "data-name": row.name }),
    name: make("span", "name"),
    state: make("span", "state"),
    scored: make("span", "scored"),
    score: make("span", "score"),
    track: make("div", "track"),
    fill: make("div", "fill"),
    stored: make("div", "stored", { title: "stored threshold " + three(row.stored) }),
    range: make("input", "mark", { type: "range", min: 0, max: 1, step: 0.001, "aria-label": "Threshold of " + row.name }),
    number: make("input", "number", { type: "number", min: 0, max: 1, step: 0.01, "aria-label": "Threshold of " + row.name + " as a number" }),
    typed: make("span", "typed"),
    back: make("button", "back", { type: "button", hidden: "", title: "Reset to " + three(row.stored), "aria-label": `Reset the threshold of ${row.name} to ${three(row.stored)}` }, "↺"),
    why: make("button", "why", { type: "button", "aria-pressed": "false", "aria-label": `Why ${row.name}? Heat map` }, "Why?"),
  };
  if (props.value.collects) {
    item.marks = make("span", "group marks");
    item.judged = ["✓", "✗"].map((sign) => make("button", "", { type: "button" }, sign));
    item.marks.append(...item.judged);
    item.judged.forEach((button, isWrong) => button.addEventListener("click", () => mark(row.name, isWrong)));
  }
  item.name.append(...row.name.split(/(?<=_)/).flatMap((part) => [part, make("wbr", "")])); // names break behind an underscore
  item.track.append(item.fill, item.stored, item.range);
  item.scored.append(make("span", "word", {}, "score "), item.score);
  item.typed.append(make("span", "word", { "aria-hidden": "true" }, "threshold"), item.number);
  item.box.append(item.name, item.state, ...(item.marks ? [item.marks] : []), item.track, item.scored, item.typed, item.back, item.why);
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
    item.number.setAttribute("aria-invalid", wrong);
    if (!wrong) move(row.name, value, item.number);
  });
  item.number.addEventListener("blur", () => {
    item.number.removeAttribute("aria-invalid");
    item.number.value = three(Number(item.range.value));
  });
  item.back.addEventListener("click", () => {
    item.range.focus();
    move(row.name, row.stored);
  });
  item.why.addEventListener("click", () => tell("why", row.name));
  return item;
}

// The parts of the page talk by events on the document: "busy", "idle", "rows", "why", "maps".
function tell(kind, detail) {
  document.dispatchEvent(new CustomEvent("aimonk-" + kind, { detail }));
}

function itemOf(row) {
  if (!items.has(row.name)) items.set(row.name, makeItem(row));
  return items.get(row.name);
}

function placeMark(item, threshold, typing) {
  const isMoved = Math.abs(threshold - Number(item.stored.style.getPropertyValue("--at"))) > 0.0005;
  if (item.back.hidden === isMoved) item.back.hidden = !isMoved;
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
  again = true;
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
  item.state.replaceChildren(row.state, ...(row.close ? [make("span", "near", {}, ", close call")] : []));
  item.box.dataset.state = row.state;
  item.box.dataset.close = row.close;
  item.why.disabled = !scored;
  showMarks(row);
}

// A mark means a label: the decision that is shown, or the other one; the same mark again takes it back.
function labelOf(row, isWrong) {
  return String(Number((row.state === "present") !== Boolean(isWrong)));
}

function mark(name, isWrong) {
  const row = rows.find((each) => each.name === name), label = labelOf(row, isWrong);
  const wanted = marks.get(name) === label ? "NA" : label;
  marks.set(name, wanted);
  showMarks(row);
  tell("mark", { attribute: name, label: wanted, key: told.key });
}

function showMarks(row) {
  itemOf(row).judged?.forEach((button, isWrong) => {
    button.disabled = !agreed || row.score === null;
    button.title = agreed ? "" : "Agree to the sentence above first";
    button.setAttribute("aria-pressed", row.score !== null && marks.get(row.name) === labelOf(row, isWrong));
    button.setAttribute("aria-label", `${row.name}: ${row.state} is ${isWrong ? "wrong" : "right"}`);
  });
}

function nearness(row) {
  return row.score === null ? 1 : Math.abs(row.score - row.threshold);
}

function ordered() {
  const list = [...rows], isPresent = (row) => row.state === "present";
  if (sort.value === "present") list.sort((a, b) => isPresent(b) - isPresent(a) || (b.score ?? 0) - (a.score ?? 0));
  if (sort.value === "score") list.sort((a, b) => (b.score ?? 0) - (a.score ?? 0));
  if (sort.value === "near") list.sort((a, b) => nearness(a) - nearness(b));
  return list;
}

function layOut() {
  let list = ordered();
  const words = search.value.trim().toLowerCase(), kept = { present: (row) => row.state === "present", close: (row) => row.close };
  search.hidden = rows.length < SEARCHED;
  if (filter !== "all") list = list.filter(kept[filter]);
  if (words) list = list.filter((row) => row.name.toLowerCase().includes(words));
  const isCut = rows.length > MANY && list.length > NEAREST && !every && filter === "all";
  if (isCut) {
    const near = new Set([...list].sort((a, b) => nearness(a) - nearness(b)).slice(0, NEAREST));
    list = list.filter((row) => near.has(row));
  }
  find(".shown").hidden = list.length === rows.length;
  find(".every").hidden = !isCut;
  find(".shown span").textContent = `${list.length} of ${rows.length} attributes shown` + (isCut ? ", those nearest to their threshold." : ".");
  for (const button of element.querySelectorAll("[data-filter]")) {
    const kind = button.dataset.filter, n = kind === "all" ? rows.length : rows.filter(kept[kind]).length;
    button.textContent = `${kind[0].toUpperCase()}${kind.slice(1)} ${n}`;
    button.setAttribute("aria-pressed", kind === filter);
  }
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
  const late = value.kind === "scored" && moves > value.moves;
  rows = value.rows.map((row) => ({ ...row, threshold: late ? moved.get(row.name) : row.threshold }));
  message.textContent = value.message;
  message.dataset.kind = value.error ? "error" : "";
  message.setAttribute("role", value.error ? "alert" : "status");
  token = value.token;
  find(".save").hidden = !token;
  find(".judged").hidden = !value.collects;
  panel.dataset.collects = value.collects;
  if (value.kind === "scored") {
    told = { image: value.image, model: value.model, key: value.key };
    marks = new Map();
    panel.removeAttribute("aria-busy");
  }
  for (const name of ["copy", "json", "card"]) find("." + name).disabled = rows[0].score === null;
  tell("rows", { rows, isNew: value.kind === "scored" });
  if (value.kind === "scored" || again) layOut();
  else for (const row of rows) if (items.has(row.name)) showRow(row);
  again = false;
  if (late && !value.error) send();
}

// The keys of `aimonk-hf predict --format json`, with the thresholds and the model.
function resultText() {
  const by = (key) => Object.fromEntries(rows.map((row) => [row.name, row[key]]));
  const attributes = rows.filter((row) => row.state === "present").map((row) => row.name);
  return JSON.stringify({ image: told.image, attributes, scores: by("score"), thresholds: by("threshold"), model: told.model }, null, 2);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(resultText());
  } catch {
    const area = make("textarea", "", {}, resultText()); // no clipboard on a page without https
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  find(".copy").textContent = "Copied";
  setTimeout(() => (find(".copy").textContent = "Copy result"), 1500);
}

function download(blob, ending) {
  const link = make("a", "", { download: told.image.replace(/\.\w{1,5}$/, "") + ending, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The image with a bar and a threshold per attribute that is shown, as in the README.
function card() {
  const shown = [...rowsBox.children].map((box) => rows.find((row) => items.get(row.name).box === box)), LINE = 30, TOP = 60, LEFT = 420;
  const canvas = make("canvas", "", { width: 2000, height: 2 * Math.max(480, TOP + LINE * shown.length + 20) }), pen = canvas.getContext("2d");
  const write = (text, x, y, width, font = "15px system-ui, sans-serif") => Object.assign(pen, { fillStyle: "#1e293b", font }).fillText(text, x, y, width);
  const fill = (colour, x, y, width, height) => Object.assign(pen, { fillStyle: colour }).fillRect(x, y, width, height);
  pen.scale(2, 2);
  fill("white", 0, 0, 1000, canvas.height / 2);
  write(told.image, 20, 32, 960, "600 18px system-ui, sans-serif");
  const image = document.querySelector("#image img");
  if (image?.naturalWidth) {
    const scale = Math.min(380 / image.naturalWidth, (canvas.height / 2 - TOP - 20) / image.naturalHeight);
    pen.drawImage(image, 20, TOP - 12, image.naturalWidth * scale, image.naturalHeight * scale);
  }
  shown.forEach((row, number) => {
    const y = TOP + LINE * number, isPresent = row.state === "present";
    write(row.name, LEFT, y + 5, 190, `${isPresent ? 600 : 400} 15px system-ui, sans-serif`);
    fill("#e2e8f0", LEFT + 200, y - 6, 300, 12);
    fill(isPresent ? "#0f766e" : "#94a3b8", LEFT + 200, y - 6, 300 * row.score, 12);
    fill("#1e293b", LEFT + 199 + 300 * row.threshold, y - 10, 2, 20);
    write(three(row.score), LEFT + 515, y + 5, 60);
  });
  canvas.toBlob((blob) => download(blob, ".attributes.png"));
}

function busy() {
  panel.setAttribute("aria-busy", "true");
  Object.assign(message, { textContent: "Scoring the image…" }).dataset.kind = "";
}

find(".reset").addEventListener("click", () => setEvery((row) => row.stored));
find(".set-all").addEventListener("click", () => {
  const value = Number(find(".all").value);
  if (find(".all").value !== "" && value >= 0 && value <= 1) setEvery(() => value);
});
find(".copy").addEventListener("click", copy);
find(".json").addEventListener("click", () => download(new Blob([resultText()], { type: "application/json" }), ".attributes.json"));
find(".card").addEventListener("click", card);
find(".filter").addEventListener("click", (event) => {
  filter = event.target.dataset.filter ?? filter;
  layOut();
});
find(".every").addEventListener("click", () => {
  every = true;
  layOut();
});
document.addEventListener("aimonk-busy", busy);
document.addEventListener("aimonk-idle", () => panel.hasAttribute("aria-busy") && (panel.removeAttribute("aria-busy"), (message.textContent = props.value.message)));
document.addEventListener("aimonk-maps", ({ detail }) => items.forEach((item, name) => item.why.setAttribute("aria-pressed", detail.includes(name))));
document.addEventListener("aimonk-agreed", ({ detail }) => ((agreed = detail), rows.forEach(showMarks)));
document.addEventListener("aimonk-refused", ({ detail }) => detail.key === told.key && (marks.delete(detail.attribute), rows.forEach(showMarks)));
find(".save").addEventListener("click", () => trigger("submit", { thresholds: rows.map((row) => row.threshold), moves, token }));
sort.addEventListener("change", layOut);
search.addEventListener("input", layOut);
watch("value", receive);
receive();
