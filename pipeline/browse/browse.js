// The page: queries to the server of this machine, and what it answers. Data becomes text of elements, never markup.
"use strict";

const TOP = 20, MOST = 500;
const token = new URLSearchParams(location.search).get("token");
const $ = id => document.getElementById(id);
let snapshots = [], uploadBytes = 0;
let query = null;  // {text}, {file}, {snapshot, row}, or {first} for the first rows
let limit = TOP, asked = 0, preview = null;

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function address(path, parameters = {}) {
  return `${path}?${new URLSearchParams({ token, ...parameters })}`;
}

async function ask(path, parameters = {}, body = undefined) {
  let response;
  try {
    response = await fetch(address(path, parameters), body === undefined ? {} : { method: "POST", body });
  } catch {
    throw new Error("The server does not answer: is audioclip browse still running?");
  }
  const answer = await response.json().catch(() => ({ error: `The server answers with status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Queries

async function run(rows = TOP) {
  const number = ++asked;
  limit = rows;
  const began = performance.now();
  showQuery();
  $("status").textContent = "Searching…";
  $("status").className = "";
  document.body.setAttribute("aria-busy", "true");
  const slow = setTimeout(() => { $("status").textContent = "Searching… the first query of a kind waits for the model"; }, 1500);
  try {
    const parameters = { top: limit };
    let answer;
    if (query.file) {
      if (query.file.size > uploadBytes) {
        throw new Error(`${query.file.name} has ${query.file.size.toLocaleString()} bytes, over ${uploadBytes.toLocaleString()}: `
          + "give a shorter one");
      }
      answer = await ask("/near/media", { ...parameters, name: query.file.name }, query.file);
    } else if (query.text !== undefined) {
      answer = await ask("/near/text", parameters, query.text);
    } else if (query.row !== undefined) {
      answer = await ask(`/near/${query.snapshot}/${query.row}`, parameters);
    } else {
      answer = await ask("/first", parameters);
    }
    clearTimeout(slow);
    if (number !== asked) return;  // another query came meanwhile
    if (answer.query) showRowAsQuery(answer.query);
    showAnswers(answer.answers);
    const rows = answer.answers.reduce((sum, each) => sum + each.hits.length, 0);
    const what = query.first ? "The first " : "";
    $("status").textContent = `${what}${plural(rows, "row")} of ${plural(snapshots.length, "snapshot")}`
      + (query.first ? "" : ` in ${((performance.now() - began) / 1000).toFixed(2)} s`);
    $("more").hidden = limit >= MOST || !answer.answers.some((each, place) => each.hits.length === limit
      && snapshots[place].rows > limit);
  } catch (error) {
    if (number !== asked) return;
    $("results").replaceChildren();
    $("more").hidden = true;
    $("status").textContent = error.message;
    $("status").className = "error";
  } finally {
    clearTimeout(slow);
    if (number === asked) document.body.removeAttribute("aria-busy");
  }
}

function plural(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}

// What is searched for is in the address, except for a file, so that links, the back button and reloading work.
function start(next, push = true) {
  query = next;
  const parameters = query.text !== undefined ? { text: query.text }
    : query.row !== undefined ? { snapshot: query.snapshot, row: query.row } : {};
  if (push) history.pushState(null, "", address("/", parameters));
  $("text").value = query.text ?? "";
  run();
}

function queryOfAddress() {
  const given = new URLSearchParams(location.search);
  if (given.get("text")) return { text: given.get("text") };
  if (given.has("row")) return { snapshot: given.get("snapshot"), row: given.get("row") };
  return { first: true };
}

// Showing

function showQuery() {
  if (preview) URL.revokeObjectURL(preview);
  preview = null;
  const shown = [];
  if (query.file) {
    preview = URL.createObjectURL(query.file);
    shown.push(element("p", {}, "Nearest to ", element("b", { textContent: query.file.name })));
    if (query.file.type.startsWith("audio/") || query.file.type.startsWith("video/")) {
      shown.push(element("audio", { controls: true, src: preview }));
    } else if (query.file.type.startsWith("image/")) {
      shown.push(element("img", { src: preview, alt: "The picture that is searched for" }));
    }
  } else if (query.text !== undefined) {
    shown.push(element("p", {}, "Nearest to ", element("b", { textContent: query.text })));
  } else if (query.row !== undefined) {
    shown.push(element("p", { textContent: `Nearest to row ${query.row}` }));
  }
  $("query").replaceChildren(...shown);
  $("query").hidden = !shown.length;
}

function showRowAsQuery(row) {
  const media = element("div", { className: "media" });
  $("query").replaceChildren(element("p", {}, "Nearest to ", element("b", { textContent: row.id })), media);
  showMedia(media, query.snapshot, row, true);
}

function showAnswers(answers) {
  $("results").replaceChildren(...answers.map((answer, place) => {
    const about = snapshots[place];
    const section = element("section", { className: "snapshot" },
      element("h2", { textContent: about.name }),
      element("p", { className: "about", textContent: `${plural(about.rows, "row")} of ${about.items}, ${about.snapshot}` }));
    for (const note of [...about.notes, ...answer.notes]) {
      section.append(element("p", { className: "warning", textContent: note }));
    }
    if (answer.error) section.append(element("p", { className: "error", role: "alert", textContent: answer.error }));
    else if (!answer.hits.length) section.append(element("p", { className: "about", textContent: "No row is found." }));
    section.append(element("ol", { className: "hits" }, ...answer.hits.map((hit, rank) => showHit(place, hit, rank))));
    return section;
  }));
  const first = document.querySelector(".hit");
  if (first) first.tabIndex = 0;
}

function showHit(snapshot, hit, rank) {
  const parts = element("div", {}, element("h3", { textContent: hit.id }));
  if (hit.text !== undefined) parts.append(element("p", { className: "text", textContent: hit.text }));
  if (hit.file !== undefined) {
    const media = element("div", { className: "media" });
    parts.append(media, element("p", { className: "place" }, ...withBreaks(placeOf(hit))));
    media.addEventListener("seen", () => showMedia(media, snapshot, hit), { once: true });
  }
  if (hit.kept.length) {
    parts.append(element("dl", { className: "kept" }, ...hit.kept.map(([name, value]) => element("div", {},
      element("dt", { textContent: name }), element("dd", { textContent: value })))));
  }
  const like = element("a", { className: "like", href: address("/", { snapshot, row: hit.row }), textContent: "More like this" });
  like.setAttribute("aria-label", `More like ${hit.id}`);
  like.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    start({ snapshot, row: hit.row });
    scrollTo(0, 0);
  });
  parts.append(like);
  const score = element("div", { className: "score" }, element("b", { textContent: hit.score === null ? "" : hit.score.toFixed(3) }),
    `${rank + 1}`);
  const row = element("li", { className: "hit", tabIndex: -1 }, score, parts);
  seen.observe(row);
  return row;
}

function placeOf(hit) {
  const size = hit.width ? `, ${hit.width} × ${hit.height}` : "";
  if (hit.start === undefined) return `${hit.file}${size}`;
  const whole = hit.start === 0 && hit.end === hit.duration;
  return whole ? `${hit.file}, ${clock(hit.duration)}` : `${hit.file}, ${clock(hit.start)} to ${clock(hit.end)} of ${clock(hit.duration)}`;
}

// A path may be broken behind each slash.
function withBreaks(path) {
  return path.split(/(?<=\/)/).flatMap(part => [part, element("wbr")]);
}

function clock(seconds) {
  const thousandths = Math.round(seconds * 1000);
  const [hours, minutes] = [Math.floor(thousandths / 3600000), Math.floor(thousandths / 60000) % 60];
  const rest = (thousandths % 60000 / 1000).toFixed(thousandths % 1000 ? 3 : 0).replace(/(\..*?)0+$/, "$1");
  const padded = `${parseFloat(rest) < 10 ? "0" : ""}${rest}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${padded}` : `${minutes}:${padded}`;
}

// Rows that are not seen are not asked for: their files may be on an object store.
const seen = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    target.querySelector(".media")?.dispatchEvent(new Event("seen"));
  }
}, { rootMargin: "300px" });

async function showMedia(media, snapshot, hit) {
  const path = `/content/${snapshot}/${hit.row}`;
  const fail = async reason => {
    const state = await ask(`${path}/state`).catch(error => error);
    const words = state instanceof Error ? state.message : `this browser cannot ${reason} it (${state.type})`;
    media.replaceChildren(element("p", { className: "warning", textContent: `Not available: ${words}` }));
  };
  try {
    const state = await ask(`${path}/state`);
    const made = state.head === "audio" ? player(address(path), hit) : picture(address(path), hit);
    made.addEventListener("error", () => fail(state.head === "audio" ? "play" : "show"));
    media.replaceChildren(made);
  } catch (error) {
    media.replaceChildren(element("p", { className: "warning", textContent: `Not available: ${error.message}` }));
  }
}

function picture(source, hit) {
  return element("img", { src: source, alt: hit.id, loading: "lazy" });
}

// A player of a row: of its file it plays the part from start to end.
function player(source, { id, start, end, duration }) {
  const audio = element("audio", { controls: true, preload: "none", src: `${source}#t=${start},${end}` });
  audio.setAttribute("aria-label", `Play ${id}`);
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    if (audio.readyState && (audio.currentTime < start - 0.01 || audio.currentTime >= end - 0.01)) audio.currentTime = start;
  });
  audio.addEventListener("timeupdate", () => {
    if (end < duration && audio.currentTime >= end - 0.01) {
      audio.pause();
      audio.currentTime = start;
    }
  });
  return audio;
}

// Files

function searchFor(file) {
  if (file) start({ file });
}

function hasFiles(event) {
  return [...event.dataTransfer?.types ?? []].includes("Files");
}

addEventListener("dragover", event => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = false;
});
addEventListener("dragleave", event => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", event => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("drop").hidden = true;
  searchFor(event.dataTransfer.files[0]);
});
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  searchFor($("file").files[0]);
  $("file").value = "";
});

// Keys and buttons

$("form").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("text").value.trim();
  start(text ? { text } : { first: true });
});
$("home").addEventListener("click", event => {
  event.preventDefault();
  start({ first: true });
});
$("more").firstElementChild.addEventListener("click", () => run(Math.min(MOST, 2 * limit)));

function focusRow(row) {
  for (const other of document.querySelectorAll(".hit")) other.tabIndex = -1;
  row.tabIndex = 0;
  row.focus();
  row.scrollIntoView({ block: "nearest" });
}

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  if (event.key === "/" && target.tagName !== "INPUT") {
    event.preventDefault();
    $("text").focus();
    return;
  }
  const rows = [...document.querySelectorAll(".hit")];
  const current = target.closest(".hit");
  if (event.key === "ArrowDown" && target === $("text") && rows.length) {
    event.preventDefault();
    focusRow(rows[0]);
  }
  if (!current || target.tagName === "AUDIO") return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    const next = rows[rows.indexOf(current) + (event.key === "ArrowDown" ? 1 : -1)];
    if (next) focusRow(next);
    else if (event.key === "ArrowUp") $("text").focus();
  } else if (event.key === " " && target === current) {
    event.preventDefault();
    const audio = current.querySelector("audio");
    if (audio) audio.paused ? audio.play().catch(() => {}) : audio.pause();
  } else if (event.key === "m") {
    current.querySelector(".like").click();
  }
});

// A focus on a phone would open its keyboard.
if (!matchMedia("(pointer: coarse)").matches) $("text").focus({ preventScroll: true });

addEventListener("popstate", () => start(queryOfAddress(), false));

(async () => {
  try {
    const answer = await ask("/snapshots");
    snapshots = answer.snapshots;
    uploadBytes = answer.upload_bytes;
  } catch (error) {
    $("status").textContent = error.message;
    $("status").className = "error";
    return;
  }
  start(queryOfAddress(), false);
})();
