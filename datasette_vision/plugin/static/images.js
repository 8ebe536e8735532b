// Images that a person drops, pastes or chooses. Shared by the search page and the playground.

/** Return the first dropped or pasted image, or undefined. */
function imageIn(transfer) {
  return Array.from(transfer?.files ?? []).find((file) => file.type.startsWith("image/"));
}

/** Set the file of a file input, as if the person had chosen it. */
function choose(input, file) {
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
}

/**
 * Call `take(input)` when an image is dropped or pasted anywhere on the page, or chosen in its file input.
 * `find()` returns that input, or null while the page accepts no images.
 */
export function takeImages(find, take) {
  const put = (event, transfer) => {
    const input = find();
    const file = imageIn(transfer);
    if (!input || !file) return;
    event.preventDefault();
    choose(input, file);
    take(input);
  };
  const dropping = (on) => document.body.classList.toggle("vision-dropping", on);
  const carriesFiles = (event) => find() && Array.from(event.dataTransfer?.types ?? []).includes("Files");

  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // otherwise the browser opens the file instead of the page
    dropping(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) dropping(false);
  });
  document.addEventListener("drop", (event) => {
    dropping(false);
    if (carriesFiles(event)) event.preventDefault();
    put(event, event.dataTransfer);
  });
  document.addEventListener("paste", (event) => put(event, event.clipboardData));
  document.addEventListener("change", (event) => {
    const input = find();
    if (input && event.target.type === "file" && event.target.files.length) {
      if (event.target !== input) choose(input, event.target.files[0]);
      take(input);
    }
  });
}

/** Return a small version of an image file as a data: URI, or null if the browser cannot read it. */
export async function preview(file, pixels) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, pixels / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/webp", 0.8);
  } catch {
    return null;
  }
}
