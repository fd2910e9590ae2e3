// The sentence of consent, and what became of a mark; the panel has the marks themselves.
const agree = element.querySelector(".agree"), told = element.querySelector(".told");
const tell = (kind, detail) => document.dispatchEvent(new CustomEvent("aimonk-" + kind, { detail }));

let leaving = 0;

function say(text, kind = "") {
  clearTimeout(leaving);
  told.className = "told";
  told.textContent = text;
  told.dataset.kind = kind;
  const { top, bottom } = told.getBoundingClientRect(), under = document.elementFromPoint(innerWidth / 2, Math.max(top, 0) + 1);
  if (!text || (top >= 0 && bottom <= innerHeight && !under?.closest("#stage"))) return;
  told.classList.add("afar");
  leaving = setTimeout(() => told.classList.remove("afar"), 8000);
}

function receive() {
  const value = props.value;
  if (!value) return;
  if (value.error) {
    tell("refused", value);
    return say(value.error, "error");
  }
  if (value.label === "NA") return say(`Taken back: your mark of ${value.attribute}.`);
  say(`Kept: ${value.attribute} is ${value.label === "1" ? "present" : "absent"}. To have this image removed, quote ${value.hash}.`);
}

agree.addEventListener("change", () => tell("agreed", agree.checked));
document.addEventListener("aimonk-mark", ({ detail }) => trigger("select", { ...detail, agreed: agree.checked }));
document.addEventListener("aimonk-rows", ({ detail }) => detail.isNew && say(""));
watch("value", receive);
