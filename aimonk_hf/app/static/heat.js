// Heat maps in the image's place: one, or up to four side by side; scores and decisions come from the panel's rows.
const MOST = 4;
const find = (selector) => element.querySelector(selector);
const viewer = find(".viewer"), grid = find(".maps"), told = find(".told"), opacity = find(".opacity");
let rows = new Map(), maps = new Map(), shown = [], image = "", shape = 1, round = 0, isHeated = true, isCompared = false, awaited = "";

const tell = (kind, detail) => document.dispatchEvent(new CustomEvent("aimonk-" + kind, { detail }));

function make(tag, className, attributes = {}) {
  return Object.assign(document.createElement(tag), { className, ...attributes });
}

function say(text, kind = "", heard = "") {
  told.replaceChildren(make("span", "heard", { textContent: heard }), text);
  told.dataset.kind = kind;
}

function words(name) {
  const row = rows.get(name);
  return `score ${row.score.toFixed(3)}, ${row.state}`;
}

function figure(name) {
  const { heat, place } = maps.get(name), [left, top, width, height] = place.map((share) => 100 * share + "%");
  const box = make("figure", ""), frame = make("div", "frame"), sheet = make("div", "sheet"), seen = make("div", "seen"), caption = make("figcaption", "");
  sheet.style.setProperty("--shape", shape);
  Object.assign(seen.style, { left, top, width, height });
  seen.append(make("img", "heat", { src: heat, alt: "" }));
  sheet.append(make("img", "base", { src: image, alt: "Heat map of " + name + " over the image" }), seen);
  frame.append(sheet);
  caption.append(make("b", "", { textContent: name }), make("span", ""));
  box.append(frame, caption);
  box.dataset.name = name;
  return box;
}

function refresh() {
  for (const box of grid.children) {
    const row = rows.get(box.dataset.name);
    box.style.setProperty("--strength", row.strength);
    box.querySelector("span").textContent = ": " + words(row.name);
  }
}

function layOut() {
  viewer.hidden = !shown.length && !told.textContent;
  find(".bar").hidden = !shown.length;
  grid.hidden = !isHeated || !shown.length;
  viewer.dataset.heated = !grid.hidden;
  const n = shown.length, size = (columns) => Math.min(grid.clientWidth / columns / shape, grid.clientHeight / Math.ceil(n / columns) - 30);
  const columns = [1, 2, 3, 4].slice(n > 1 ? 1 : 0, n || 1).sort((a, b) => size(b) - size(a))[0]; // those that make the images largest
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  grid.replaceChildren(...shown.map(figure));
  refresh();
  find(".original").setAttribute("aria-pressed", !isHeated);
  find(".heated").setAttribute("aria-pressed", isHeated);
  find(".compare").setAttribute("aria-pressed", isCompared);
  tell("maps", shown);
}

function show(name) {
  shown = isCompared ? [...shown.filter((each) => each !== name), name].slice(-MOST) : [name];
  isHeated = true;
  const isPale = rows.get(name).state !== "present" ? " It is drawn paler, because the attribute is absent." : "";
  say("Bright parts raised the score." + isPale, "", `Heat map of ${name}: ${words(name)}. `);
  layOut();
}

function reset() {
  maps = new Map();
  shown = [];
  round += 1;
  say("");
  layOut();
}

document.addEventListener("aimonk-rows", ({ detail }) => {
  rows = new Map(detail.rows.map((row) => [row.name, row]));
  if (detail.isNew) reset();
  else refresh();
});

document.addEventListener("aimonk-why", ({ detail: name }) => {
  awaited = name;
  if (shown.includes(name)) {
    shown = shown.filter((each) => each !== name); // a second press takes the map away
    say("");
    return layOut();
  }
  if (maps.has(name)) return show(name);
  say(`Computing the heat map of ${name}…`);
  layOut();
  trigger("select", { attribute: name, round });
});

watch("value", () => {
  const value = props.value;
  if (!value || value.round !== round) return; // of an image before
  if (value.error) say(value.error, "error");
  else {
    [image, shape] = [value.image, value.shape];
    maps.set(value.attribute, value);
    if (isCompared || value.attribute === awaited) show(value.attribute);
  }
  layOut();
});

function choose(heated) {
  isHeated = heated;
  say(heated ? "The heat map is shown." : "The original image is shown.");
  layOut();
}

find(".original").addEventListener("click", () => choose(false));
find(".heated").addEventListener("click", () => choose(true));
find(".compare").addEventListener("click", () => {
  isCompared = !isCompared;
  if (!isCompared) shown = shown.slice(-1);
  layOut();
});
opacity.addEventListener("input", () => {
  viewer.style.setProperty("--opacity", opacity.value / 100);
  opacity.setAttribute("aria-valuetext", opacity.value + "%");
});
