// What gradio leaves undone: names for the example images, after their files, and for the button that adds files; Ctrl+V with an image.
() => {
  const name = () => {
    for (const button of document.querySelectorAll("#examples button:not([aria-label])")) {
      const file = decodeURIComponent(button.querySelector("img")?.src.split("/").pop() ?? "");
      if (!file) continue;
      const words = file.replace(/\.[^.]*$/, "").replace(/_\d+$/, "").replaceAll("_", " ");
      button.setAttribute("aria-label", "Example: " + words);
      button.title = words;
    }
    for (const button of document.querySelectorAll("[aria-label='common.upload']")) button.setAttribute("aria-label", "Add files");
  };
  name();
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });

  document.addEventListener("paste", (event) => {
    const images = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    const field = document.querySelector("#image");
    if (!images.length || !field?.offsetParent) return;
    event.preventDefault();
    const input = field.querySelector("input[type=file]");
    if (!input) return field.querySelector(".source-selection button:last-child")?.click(); // an image is there: gradio's own paste replaces it
    const held = new DataTransfer();
    held.items.add(images[0]);
    input.files = held.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}
