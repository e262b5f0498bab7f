"use strict";

const byId = (name) => document.getElementById(name);
const status = byId("status");
let number = 0;

function element(name, content, className) {
  const made = document.createElement(name);
  if (content !== undefined) made.textContent = content;
  if (className) made.className = className;
  return made;
}

function say(text, isError) {
  status.textContent = text;
  status.className = isError ? "error" : "";
}

function card(match) {
  const shown = element("figure", undefined, "match");
  if (match.thumbnail) {
    const image = element("img");
    image.src = match.thumbnail;
    image.alt = match.text[0] || match.key;
    image.loading = "lazy";
    shown.append(image);
  } else {
    shown.append(element("div", "no picture", "none"));
  }
  const caption = element("figcaption");
  caption.append(element("span", match.score.toFixed(3), "score"));
  caption.append(element("div", match.text[0] || match.key));
  caption.append(element("small", `${match.source}/${match.key}`));
  shown.append(caption);
  shown.title = match.text.join("\n");
  return shown;
}

async function search(body, label) {
  const mine = ++number;
  say("Searching …");
  try {
    const response = await fetch("/search", { method: "POST", body });
    const answer = await response.json();
    if (mine !== number) return;
    if (!response.ok) throw new Error(answer.error);
    byId("matches").replaceChildren(...answer.matches.map(card));
    say(`${answer.matches.length} matches for ${label}, ${answer.milliseconds} ms`);
  } catch (error) {
    if (mine !== number) return;
    byId("matches").replaceChildren();
    say(error.message, true);
  }
}

function searchText() {
  const text = byId("text").value.trim();
  byId("query").hidden = true;
  if (!text) return say("Type what the picture shows.", true);
  const body = new FormData();
  body.append("text", text);
  search(body, `“${text}”`);
}

function searchImage(file) {
  if (!file) return;
  const image = byId("query").querySelector("img");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  byId("query").hidden = false;
  byId("text").value = "";
  const body = new FormData();
  body.append("image", file);
  search(body, file.name);
}

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); searchText(); });
byId("file").addEventListener("change", (event) => {
  searchImage(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  searchImage(event.dataTransfer.files[0]);
});
fetch("/about").then((response) => response.json()).then((about) => {
  byId("about").textContent = about.text;
});
