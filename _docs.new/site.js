// Menu, light and dark, search. Pages can be read without it. It asks no server for anything: the index
// of the search is a script beside the pages, loaded when the search is opened for the first time.
"use strict";
const up = document.currentScript.dataset.up;
const root = document.documentElement;
root.classList.add("scripted");

// A reader's choice of light or dark is kept where the browser allows it; without one the system decides.
const remember = {
  get() { try { return localStorage.getItem("scheme") || ""; } catch { return ""; } },
  set(value) { try { localStorage.setItem("scheme", value); } catch { /* private window */ } },
};
root.style.colorScheme = remember.get();

function isDark() {
  const chosen = root.style.colorScheme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function setUpScheme() {
  const button = document.getElementById("site-scheme-button");
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    root.style.colorScheme = isDark() ? "light" : "dark";
    remember.set(root.style.colorScheme);
    label();
  });
  label();
}

function setUpMenu() {
  const button = document.getElementById("site-menu-button");
  const menu = document.getElementById("site-menu");
  const show = (open) => {
    menu.classList.toggle("open", open);
    button.setAttribute("aria-expanded", open);
  };
  button.addEventListener("click", () => {
    show(!menu.classList.contains("open"));
    if (menu.classList.contains("open")) menu.querySelector("a").focus();
  });
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.classList.contains("open")) return;
    show(false);
    button.focus();
  });
  const current = menu.querySelector("[aria-current]");
  if (current && menu.scrollHeight > menu.clientHeight) menu.scrollTop = current.offsetTop - menu.clientHeight / 2;
}

// --- search -------------------------------------------------------------------------------------------------

function loadIndex() {
  if (window.searchIndex) return Promise.resolve();
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = up + "search.js";
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
}

// How well a section fits one word: the title of its page counts most, then its own, then its text.
function fit([, page, title, text], word) {
  const at = (where) => {   // 0: not there, 1: inside a word, 2: at the start of one
    const i = where.toLowerCase().indexOf(word);
    return i < 0 ? 0 : /\w/.test(where[i - 1] || " ") ? 1 : 2;
  };
  return (title ? 4 : 12) * at(page) + 5 * at(title) + at(text);
}

const wordsOf = (text) => text.toLowerCase().split(/[\s_]+/).filter(Boolean);

// Sections that hold all words, best first; a title that begins with the query goes before all others.
function search(query) {
  const words = wordsOf(query);
  if (!words.length) return [];
  const rank = (section) => {
    const fits = words.map((word) => fit(section, word));
    if (fits.includes(0)) return 0;
    const begins = wordsOf(section[2] || section[1]).join(" ").startsWith(words.join(" "));
    return fits.reduce((a, b) => a + b) + (begins ? 20 : 0);
  };
  return window.searchIndex.map((section) => [rank(section), section]).filter(([n]) => n)
    .sort((a, b) => b[0] - a[0]).map(([, section]) => section);
}

// The text around the first word that is found, with that word marked.
function snippet(text, words) {
  const places = words.map((word) => [text.toLowerCase().indexOf(word), word.length]).filter(([i]) => i >= 0);
  const [at, length] = places.sort((a, b) => a[0] - b[0])[0] || [0, 0];
  const start = at < 60 ? 0 : text.lastIndexOf(" ", at - 40) + 1;
  const part = document.createElement("span");
  const mark = document.createElement("mark");
  mark.textContent = text.slice(at, at + length);
  part.append(start ? "… " : "", text.slice(start, at), ...(length ? [mark] : []), text.slice(at + length, start + 160));
  return part;
}

function resultItem([target, page, title, text], words) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  const head = document.createElement("strong");
  link.href = up + target;
  head.textContent = title ? `${page} › ${title}` : page;
  link.append(head, snippet(text, words));
  item.append(link);
  return item;
}

function setUpSearch() {
  const [dialog, query, found, results] = ["search", "query", "found", "results"].map((id) => document.getElementById("site-" + id));
  const links = () => [...results.querySelectorAll("a")];
  const open = async () => {
    if (dialog.open) return;
    dialog.showModal();
    query.select();
    try { await loadIndex(); } catch { found.textContent = "The index of the search (search.js) is missing."; return; }
    update();
  };
  const update = () => {
    if (!window.searchIndex) return;
    const all = search(query.value);
    const words = wordsOf(query.value);
    results.replaceChildren(...all.slice(0, 20).map((section) => resultItem(section, words)));
    found.textContent = words.length ? `${all.length || "No"} section${all.length === 1 ? "" : "s"}` : "Type a word; arrow keys choose, Enter opens.";
  };
  query.addEventListener("input", update);
  dialog.addEventListener("keydown", (event) => {
    const list = links();
    const place = list.indexOf(document.activeElement);
    if (event.key === "ArrowDown" && place + 1 < list.length) { list[place + 1].focus(); event.preventDefault(); }
    if (event.key === "ArrowUp" && place >= 0) { (list[place - 1] || query).focus(); event.preventDefault(); }
    if (event.key === "Escape") dialog.close();
    if (event.key === "Enter" && place < 0 && list.length) { list[0].click(); event.preventDefault(); }
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog || event.target.closest("a")) dialog.close(); });
  document.getElementById("site-search-button").addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest("input, textarea, select, [contenteditable]");
    const asked = (event.key === "/" && !writing) || (event.key === "k" && (event.ctrlKey || event.metaKey));
    if (asked) { event.preventDefault(); open(); }
  });
}

// --- code: a button that copies it -----------------------------------------------------------------------------

function setUpCopying() {
  for (const block of document.querySelectorAll("div.sourceCode")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(block.querySelector("code").textContent); button.textContent = "Copied"; }
      catch { button.textContent = "Not allowed"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    block.append(button);
  }
}

// --- on this page: mark the section that is being read -------------------------------------------------------

function setUpContents() {
  const links = new Map([...document.querySelectorAll("aside a")].map((link) => [link.hash.slice(1), link]));
  const headings = [...document.querySelectorAll("main h2, main h3")].filter((heading) => links.has(heading.id));
  const mark = () => {
    const current = headings.filter((heading) => heading.getBoundingClientRect().top < innerHeight / 3).pop();
    links.forEach((link, id) => link.classList.toggle("current", current !== undefined && id === current.id));
  };
  if (headings.length) { addEventListener("scroll", mark, { passive: true }); mark(); }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const setUp of [setUpScheme, setUpMenu, setUpSearch, setUpCopying, setUpContents]) setUp();
});
