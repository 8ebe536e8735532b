// Enhances the playground: submits dropped or pasted images immediately, and shows the results in place.

import { takeImages } from "./images.js";

const form = document.getElementById("vision-ask");
const status = document.getElementById("vision-status");
let asking = null;

async function ask() {
  asking?.abort();
  const mine = (asking = new AbortController());
  const answers = document.getElementById("vision-answers");
  answers.setAttribute("aria-busy", "true");
  status.textContent = "Asking the models…";
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form), signal: mine.signal });
    const html = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = html.getElementById("vision-answers");
    if (!fresh) throw new Error("not the playground");
    answers.replaceChildren(...fresh.childNodes);
    const models = html.querySelector(".vision-models");
    if (models) document.querySelector(".vision-models").replaceWith(models);
    const first = answers.querySelector(".vision-answer");
    const best = first?.querySelector(".vision-bar-label")?.textContent;
    status.textContent = first ? `${first.querySelector("h2").textContent}: ${best}` : "";
  } catch {
    if (!mine.signal.aborted) status.textContent = "The image could not be sent. Please try again.";
  } finally {
    if (asking === mine) answers.removeAttribute("aria-busy");
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
takeImages(() => document.getElementById("vision-file"), ask);
document.documentElement.classList.add("vision-js");
