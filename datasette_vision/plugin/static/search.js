// Enhances the search page: updates in place, reacts to the slider immediately, and accepts dropped or pasted images.
// The links and forms of the page do the same without this script.

import { preview, takeImages } from "./images.js";

const page = document.getElementById("vision-page");
const status = document.getElementById("vision-status");
let asking = null;

/** Request a page and replace this one with it. The last request wins. */
async function show(url, { method = "GET", body, push = true } = {}) {
  asking?.abort();
  const mine = (asking = new AbortController());
  page.setAttribute("aria-busy", "true");
  status.textContent = "Searching…";
  try {
    const response = await fetch(url, { method, body, signal: mine.signal, headers: { accept: "text/html" } });
    const html = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = html.getElementById("vision-page");
    if (!fresh) throw new Error("not a search page");
    const address = response.redirected || method === "GET" ? response.url : location.href;
    if (push && address !== location.href) history.pushState(null, "", address);
    replace(fresh);
    document.title = html.title;
    return address;
  } catch (error) {
    if (mine.signal.aborted) return null;
    if (method === "GET") location.href = url;
    else status.textContent = "The image could not be sent. Please try again.";
    return null;
  } finally {
    if (asking === mine) page.removeAttribute("aria-busy");
  }
}

/** Replace the content with another page's, and keep the focus, or move it to the results. */
function replace(fresh) {
  const active = document.activeElement;
  const inside = page.contains(active);
  const id = active?.id;
  const open = new Map(Array.from(page.querySelectorAll("details[id]"), (details) => [details.id, details.open]));
  const typed = id === "vision-q" ? active.selectionEnd : null;
  page.replaceChildren(...fresh.childNodes);
  for (const details of page.querySelectorAll("details[id]")) {
    if (open.has(details.id)) details.open = open.get(details.id);
  }
  if (inside) {
    const target = (id && document.getElementById(id)) || document.getElementById("vision-heading");
    target?.focus({ preventScroll: target.id === id });
    if (typed !== null) target?.setSelectionRange?.(typed, typed);
  }
  dress();
  const alert = page.querySelector("[role=alert]");
  const heading = document.getElementById("vision-heading")?.textContent ?? "";
  const summary = document.getElementById("vision-summary")?.textContent ?? "";
  status.textContent = alert ? "" : `${heading}. ${summary}`.replace(/\s+/g, " ").trim();
}

/** Enhance a page that has just loaded. */
function dress() {
  for (const place of page.querySelectorAll("[data-picture]")) {
    const picture = sessionStorage.getItem(`vision:${place.dataset.picture}`);
    if (picture) {
      place.style.backgroundImage = `url("${picture}")`;
      place.textContent = "";
    }
  }
}

/** Only the fields that are filled in, so that addresses stay short. */
function addressOf(form) {
  const fields = [...new FormData(form)].filter(([name, value]) => value !== "" && !(name === "_threshold" && +value === 0));
  const names = new Set(fields.map(([name]) => name));
  // Ignore a filter without a column.
  const kept = fields.filter(([name]) => {
    const filter = /^_filter_(?:op|value)(_\d+)?$/.exec(name);
    return !filter || names.has(`_filter_column${filter[1] ?? ""}`);
  });
  return `${form.action}?${new URLSearchParams(kept)}`;
}

async function upload(input) {
  const file = input.files[0];
  const small = preview(file, 72);
  const address = await show(input.form.action, { method: "POST", body: new FormData(input.form) });
  const embedding = address && new URL(address).searchParams.get("_embedding");
  if (!embedding) return;
  const picture = await small;
  if (!picture) return;
  try {
    sessionStorage.setItem(`vision:${embedding.split(":")[0].slice(-48)}`, picture);
  } catch {
    return; // storage is full: the chip has no image
  }
  dress();
}

page.addEventListener("submit", (event) => {
  if (event.target.id === "vision-form") {
    event.preventDefault();
    show(addressOf(event.target));
  } else if (event.target.id === "vision-upload") {
    event.preventDefault();
    upload(event.target.elements.picture);
  }
});

page.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  if (new URL(link.href).pathname !== location.pathname) return;
  event.preventDefault();
  show(link.href).then(() => {
    if (link.closest(".vision-pages")) document.getElementById("vision-heading")?.scrollIntoView();
  });
});

page.addEventListener("input", (event) => {
  if (event.target.id !== "vision-threshold") return;
  const least = +event.target.value;
  document.getElementById("vision-threshold-value").textContent = least ? least.toFixed(2) : "any";
  for (const card of page.querySelectorAll("[data-similarity]")) card.hidden = +card.dataset.similarity < least;
});

page.addEventListener("change", (event) => {
  if (event.target.id === "vision-threshold" || event.target.name === "_like") show(addressOf(event.target.form));
});

// Datasette 0.65 closes every <details> of a page, not only its menus, when somebody clicks elsewhere.
let opened = [];
document.addEventListener("click", () => (opened = Array.from(page.querySelectorAll("details[open]"))), true);
document.addEventListener("click", () => opened.forEach((details) => (details.open = true)));

takeImages(() => document.getElementById("vision-file"), upload);
addEventListener("popstate", () => show(location.href, { push: false }));
document.documentElement.classList.add("vision-js");
dress();
