// What gradio leaves undone: names for example images and the button that adds files; Ctrl+V with an image; a busy state at once; megabytes.
() => {
  const tell = (kind) => document.dispatchEvent(new CustomEvent("aimonk-" + kind));
  const name = () => {
    document.querySelectorAll("#examples button").forEach((button, index) => {
      const file = decodeURIComponent(button.querySelector("img")?.src.split("/").pop() ?? "");
      if (!file || button.hasAttribute("aria-label")) return;
      const words = file.replace(/\.[^.]*$/, "").replace(/_\d+$/, "").replaceAll("_", " ");
      button.setAttribute("aria-label", `Example ${index + 1}: ${words}`);
      button.title = words;
    });
    for (const button of document.querySelectorAll("[aria-label='common.upload']")) button.setAttribute("aria-label", "Add files");
    const refusal = document.querySelector("[data-testid=toast-body]");
    if (!refusal) return;
    tell("idle");
    // gradio counts 1,048,576 bytes as a megabyte
    const megabytes = (window.gradio_config?.max_file_size ?? 0) / 1e6;
    for (const text of refusal.querySelectorAll("p, div, span"))
      if (!text.children.length && /maximum allowed size of/.test(text.textContent)) text.textContent = `The file is too large: more than the limit of ${megabytes} MB.`;
  };
  name();
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  document.addEventListener("change", ({ target }) => target.matches("#image input[type=file]") && target.files.length && tell("busy"), true);
  document.addEventListener("drop", ({ target, dataTransfer }) => target.closest?.("#image") && dataTransfer.files.length && tell("busy"), true);
  document.addEventListener("click", ({ target }) => target.closest?.("#examples button") && tell("busy"), true);
  document.addEventListener("click", ({ target }) => target.closest?.(".sortable th button") && sortBy(target.closest("th")));

  const sortBy = (head) => {
    const column = [...head.parentNode.children].indexOf(head), body = head.closest("table").tBodies[0];
    const isUp = head.getAttribute("aria-sort") === "descending", key = (row) => row.children[column].dataset.key ?? "";
    const compare = (a, b) => (isNaN(key(a) || "x") || isNaN(key(b) || "x") ? key(a).localeCompare(key(b)) : key(a) - key(b));
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => (isUp ? compare(a, b) : compare(b, a))));
  };

  document.addEventListener("paste", (event) => {
    const images = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    const field = document.querySelector("#image");
    if (!images.length || !document.querySelector("#predict-left")?.offsetParent) return;
    event.preventDefault();
    const input = field.querySelector("input[type=file]");
    if (!input) return field.querySelector(".source-selection button:last-child")?.click(); // an image is there: gradio's own paste replaces it
    const held = new DataTransfer();
    held.items.add(images[0]);
    input.files = held.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}
