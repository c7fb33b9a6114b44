// Menu, light and dark, search, larger pictures. Pages can be read without it. It asks no server for anything: the
// index of the search and its ranking are scripts beside the pages, loaded when the search is opened for the first time.
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

// The index and the ranking (find.js) are scripts beside the pages.
function load(name) {
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = up + name;
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
}

let index = null;
async function loadIndex() {
  if (index) return;
  await Promise.all([load("search.js"), load("find.js")]);
  index = prepare(window.searchIndex);
}

// The text around the first word that is found, with that word marked.
function snippet(text, words) {
  const any = words.length && text.match(new RegExp(`(?<![\\p{L}\\p{N}])(?:${words.join("|")})(?![\\p{L}\\p{N}])`, "iu"));
  const [at, length] = any ? [any.index, any[0].length] : [0, 0];
  const start = at < 60 ? 0 : text.lastIndexOf(" ", at - 40) + 1;
  const part = document.createElement("span");
  const mark = document.createElement("mark");
  mark.textContent = text.slice(at, at + length);
  part.append(start ? "… " : "", text.slice(start, at), ...(length ? [mark] : []), text.slice(at + length, start + 160));
  return part;
}

function resultItem([[, , target, page, title, text], words]) {
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
    try { await loadIndex(); }
    catch { found.textContent = "The index of the search (search.js, find.js) is missing."; return; }
    update();
  };
  const update = () => {
    if (!index) return;
    const { found: all, whole, read } = findSections(index, query.value, window.searchSynonyms);
    const count = (n) => `${n || "No"} section${n === 1 ? "" : "s"}`;
    results.replaceChildren(...all.slice(0, 20).map(resultItem));
    found.textContent = !query.value.trim() ? "Type a word; arrow keys choose, Enter opens."
      : read.map(([typed, other]) => `${typed} read as ${other}. `).join("")
        + (whole || !all.length ? count(whole || all.length) : `None has all words, some of them: ${count(all.length)}`);
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

// --- pictures: one that is shown smaller than it is can be enlarged; sounds say how long they are --------------

function setUpPictures() {
  const dialog = document.createElement("dialog");
  dialog.id = "site-picture";
  dialog.setAttribute("aria-label", "Picture");
  dialog.innerHTML = '<button type="button">Close</button><div tabindex="0" role="region" aria-label="Larger picture"></div>';
  const [button, region] = ["button", "div"].map((name) => dialog.querySelector(name));
  const enlarge = (picture) => {
    const shown = Object.assign(new Image(), { src: picture.src, alt: picture.alt });
    shown.style.width = `${Math.max(picture.naturalWidth, 1.5 * picture.clientWidth)}px`;
    region.replaceChildren(shown);
    dialog.showModal();
  };
  const small = (picture) => picture.naturalWidth > 1.05 * picture.clientWidth && picture.clientWidth > 0;
  const update = () => {
    for (const picture of pictures) {
      const can = small(picture);
      picture.classList.toggle("enlarges", can);
      if (can) picture.tabIndex = 0; else picture.removeAttribute("tabindex");
    }
  };
  const pictures = [...document.querySelectorAll("main img")].filter((picture) => !picture.closest("a"));
  for (const picture of pictures) {
    picture.addEventListener("click", () => { if (small(picture)) enlarge(picture); });
    picture.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !small(picture)) return;
      event.preventDefault();                              // or the same key would press the button that closes
      enlarge(picture);
    });
    if (!picture.complete) picture.addEventListener("load", update);
  }
  button.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  addEventListener("resize", update);
  update();
}

function setUpPlayers() {
  for (const player of document.querySelectorAll("main audio")) {
    const length = document.createElement("small");
    length.className = "length";
    player.after(length);
    const show = () => { if (Number.isFinite(player.duration)) length.textContent = `${player.duration.toFixed(1)} s`; };
    player.addEventListener("durationchange", show);
    show();
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
  for (const setUp of [setUpScheme, setUpMenu, setUpSearch, setUpCopying, setUpPictures, setUpPlayers, setUpContents]) setUp();
});
