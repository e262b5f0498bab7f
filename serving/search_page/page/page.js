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

function say(text, kind) {
  status.textContent = text;
  status.className = kind || "";
}

// A share as people read it: 42 %, 0.66 %, 0.000025 %.
function percent(share) {
  const value = 100 * share;
  const digits = { maximumSignificantDigits: 2, useGrouping: false };
  return `${value.toLocaleString("en", value < 1e-12 ? { maximumFractionDigits: 0 } : digits)} %`;
}

function card(match, isRanked) {
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
  if (match.probability !== null) {
    const score = element("span", percent(match.probability), "score");
    score.append(element("small", `cosine ${match.score.toFixed(3)}`));
    caption.append(score);
  } else if (isRanked) {
    caption.append(element("span", `cosine ${match.score.toFixed(3)}`, "score"));
  }
  const text = element("div");
  // Of its own direction: captions may be written from right to left.
  text.append(element("bdi", match.text[0] || match.key));
  caption.append(text);
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
    byId("matches").replaceChildren(...answer.matches.map((match) => card(match, true)));
    byId("matches").classList.toggle("doubtful", answer.fits === false);
    const [best] = answer.matches;
    const time = `${answer.milliseconds} ms`;
    if (answer.fits === false) {
      say(`No good match for ${label}: the nearest fits with a probability of ` +
        `${percent(best.probability)} (${time})`, "doubt");
    } else if (answer.fits) {
      say(`${answer.matches.length} matches for ${label}; the best fits with a probability of ` +
        `${percent(best.probability)} (${time})`);
    } else {
      say(`${answer.matches.length} matches for ${label}, the nearest first (${time})`);
    }
  } catch (error) {
    if (mine !== number) return;
    byId("matches").replaceChildren();
    say(error.message, "error");
  }
}

function searchText() {
  const text = byId("text").value.trim();
  byId("query").hidden = true;
  if (!text) return say("Type what the picture shows.", "error");
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
byId("choose").addEventListener("click", () => byId("file").click());
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

// What there is to find, until something is asked for.
fetch("/examples").then((response) => response.json()).then(({ matches }) => {
  if (!matches.length) return;
  const texts = [...new Set(matches.map((match) => match.text[0]).filter(Boolean))].slice(0, 4);
  for (const text of texts) {
    const button = element("button");
    button.append(element("bdi", text));
    button.type = "button";
    button.addEventListener("click", () => {
      byId("text").value = text;
      searchText();
    });
    byId("suggestions").append(button);
  }
  byId("suggestions").hidden = !texts.length;
  if (number) return;
  byId("matches").replaceChildren(...matches.map((match) => card(match, false)));
  say("Some of the pictures");
});
