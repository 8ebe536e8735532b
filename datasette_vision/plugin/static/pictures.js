// Pictures that a person drops, pastes or chooses: what the search page and the playground share.

/** The first picture of what was dropped or pasted, or undefined. */
function pictureIn(transfer) {
  return Array.from(transfer?.files ?? []).find((file) => file.type.startsWith("image/"));
}

/** Put a file into a file input, as if it had been chosen there. */
function choose(input, file) {
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
}

/**
 * Call `take(input)` when a picture has been dropped or pasted anywhere on the page, or chosen in its file input.
 * `find()` returns that input, or null when the page takes no pictures now.
 */
export function takePictures(find, take) {
  const put = (event, transfer) => {
    const input = find();
    const file = pictureIn(transfer);
    if (!input || !file) return;
    event.preventDefault();
    choose(input, file);
    take(input);
  };
  const dropping = (on) => document.body.classList.toggle("vision-dropping", on);
  const carriesFiles = (event) => find() && Array.from(event.dataTransfer?.types ?? []).includes("Files");

  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // or the browser would open the file instead of the page
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

/** A small picture of a file as a data: address, or null when the browser cannot read it. */
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
