// The images of a batch as a table or a gallery, filtered and sorted here; a CSV file of what is shown comes from the server.
const CLOSE = 0.05, BINS = 25, LONGEST = 30;
const find = (selector) => element.querySelector(selector);
const attribute = find(".attribute"), decision = find(".decision"), mark = find(".mark");
let names = [], rows = [], thresholds = [], sorted = { by: "image", isUp: true };

function make(tag, className, text = "", attributes = {}) {
  const node = Object.assign(document.createElement(tag), { className, textContent: text });
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const address = (path) => `${window.gradio_config.root}${window.gradio_config.api_prefix}/file=${path.split("/").map(encodeURIComponent).join("/")}`;
const isOn = (selector) => find(selector).getAttribute("aria-pressed") === "true";
const shortened = (name) => (name.length > LONGEST ? `${name.slice(0, LONGEST / 2)}…${name.slice(1 - LONGEST / 2)}` : name);
const isPresent = (row, index) => row.scores[index] >= thresholds[index];
const isClose = (row, index) => Math.abs(row.scores[index] - thresholds[index]) <= CLOSE;
const present = (row) => names.filter((_, index) => isPresent(row, index));
const chosen = () => (attribute.value.startsWith("a") ? Number(attribute.value.slice(1)) : -1);

function isShown(row) {
  const index = chosen();
  if (attribute.value === "failed") return !row.scores;
  if (index < 0) return true;
  if (!row.scores) return false;
  return decision.value === "close" ? isClose(row, index) : isPresent(row, index) === (decision.value === "present");
}

function shown() {
  const { by, isUp } = sorted, sign = isUp ? 1 : -1;
  const key = (row) => (by === "image" ? row.number : !row.scores ? -Infinity : by === "attributes" ? present(row).length : row.scores[by]);
  return rows.filter(isShown).sort((a, b) => sign * (key(a) - key(b)) || a.number - b.number);
}

function opener(row) {
  const button = row.scores ? make("button", "open", "", { type: "button" }) : make("div", "open");
  button.title = row.image;
  if (row.thumbnail) {
    const image = make("img", "", "", { src: address(row.thumbnail), alt: "", loading: "lazy" });
    image.onerror = () => (image.style.visibility = "hidden"); // old files are removed
    button.append(image);
  }
  button.append(make("span", "", shortened(row.image)));
  if (!row.scores) return button;
  button.setAttribute("aria-label", `Open ${row.image} in Predict`);
  button.addEventListener("click", () => trigger("select", { number: row.number }));
  return button;
}

function line(row) {
  const found = row.scores ? present(row) : [], words = isOn(".scores") ? `${found.length} present` : found.join(", ") || "none";
  const box = make("tr", ""), image = make("td", ""), told = make("td", "told", row.scores ? words : "");
  image.append(opener(row));
  if (row.error) told.append(make("b", "", row.error));
  if (row.notes) told.append(make("br", ""), make("small", "", row.notes));
  box.append(image, told);
  if (isOn(".scores"))
    names.forEach((_, index) => box.append(make("td", "figure", row.scores ? row.scores[index].toFixed(3) : "", { "data-present": Boolean(row.scores && isPresent(row, index)) })));
  return box;
}

function headings() {
  const heads = [["image", "Image"], ["attributes", "Present attributes"], ...(isOn(".scores") ? names.map((name, index) => [index, name]) : [])];
  find("thead tr").replaceChildren(
    ...heads.map(([by, text]) => {
      const head = make("th", "", "", { scope: "col", ...(sorted.by === by ? { "aria-sort": sorted.isUp ? "ascending" : "descending" } : {}) });
      head.append(make("button", "", text, { type: "button" }));
      head.firstChild.addEventListener("click", () => {
        sorted = { by, isUp: sorted.by === by ? !sorted.isUp : by === "image" };
        layOut();
      });
      return head;
    }),
  );
}

function histogram() {
  const index = chosen();
  find(".histogram").hidden = decision.hidden = index < 0;
  if (index < 0) return;
  const scored = rows.filter((row) => row.scores), counts = Array(BINS).fill(0), at = thresholds[index];
  for (const row of scored) counts[Math.min(BINS - 1, Math.floor(row.scores[index] * BINS))] += 1;
  find(".bars").replaceChildren(
    ...counts.map((count, bin) => {
      const bar = make("i", (bin + 0.5) / BINS >= at ? "present" : "");
      bar.style.setProperty("--share", count / Math.max(...counts, 1));
      return bar;
    }),
  );
  mark.value = at;
  mark.setAttribute("aria-label", "Threshold of " + names[index] + " for the whole batch");
  mark.setAttribute("aria-valuetext", at.toFixed(3));
  find("figcaption").textContent = `Scores of ${names[index]}: present in ${scored.filter((row) => isPresent(row, index)).length} of ${scored.length} images at threshold ${at.toFixed(3)}.`;
}

function layOut() {
  const list = shown(), isGallery = isOn(".in-gallery");
  find(".batch").hidden = !rows.length;
  find(".count").textContent = `${list.length} of ${rows.length}`;
  find(".scroll").hidden = isGallery;
  find("#gallery").hidden = !isGallery;
  find("table").className = isOn(".scores") ? "with-scores" : "";
  histogram();
  headings();
  find("tbody").replaceChildren(...(isGallery ? [] : list.map(line)));
  const tile = (row) => {
    const box = opener(row);
    box.append(make("small", "", row.error || present(row).join(", ") || "none"));
    return box;
  };
  find("#gallery").replaceChildren(...(isGallery ? list.map(tile) : []));
}

watch("value", () => {
  const value = props.value;
  if (!value) return;
  if (value.csv) return make("a", "", "", { href: address(value.csv), download: "predictions.csv" }).click();
  if (value.rows) {
    rows = value.rows.map((row, number) => ({ ...row, number }));
    names = value.names;
    attribute.replaceChildren(new Option("all images", ""), new Option("images without scores", "failed"), ...names.map((name, index) => new Option(name, "a" + index)));
  }
  thresholds = value.thresholds;
  layOut();
});

function choose(on, ...off) {
  find(on).setAttribute("aria-pressed", true);
  off.forEach((selector) => find(selector).setAttribute("aria-pressed", false));
  layOut();
}

attribute.addEventListener("change", layOut);
decision.addEventListener("change", layOut);
find(".in-table").addEventListener("click", () => choose(".in-table", ".in-gallery"));
find(".in-gallery").addEventListener("click", () => choose(".in-gallery", ".in-table"));
find(".scores").addEventListener("click", () => (isOn(".scores") ? choose(".in-table", ".in-gallery", ".scores") : (choose(".scores"), choose(".in-table", ".in-gallery"))));
mark.addEventListener("input", () => {
  thresholds[chosen()] = Number(mark.value);
  layOut();
});
mark.addEventListener("change", () => trigger("input", { thresholds }));
find("#csv").addEventListener("click", () => trigger("submit", { thresholds, numbers: shown().map((row) => row.number) }));
