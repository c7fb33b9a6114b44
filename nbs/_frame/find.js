// Which sections of the site answer a query, best first: any of its words, in other words, one slip allowed.
// No word of the page: it takes rows and gives rows. A row is [place, level, address, page, title, text];
// place: 0 guide, 1 chapter, 2 internals; level: 0 page, 1 section, 2 function or class.
"use strict";

const SILENT = new Set(("a an and are as at be by can do does for from get have how i in is it its me my of on " +
  "one only or so than that the their them there this to use using want was we what when where which who why " +
  "will with you your").split(" "));                   // words that tell nothing, unless all of a query are such

const wordsOf = (text) => text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || [];

// Words of a text of the index; the parts of a name such as AnnealedLoss count, too.
function indexed(text) {
  const names = text.match(/\w*[a-z][A-Z]\w*/g) || [];
  return wordsOf(`${text} ${names.join(" ").replace(/([a-z\d])([A-Z])/g, "$1 $2")}`);
}

// One letter wrong, missing or too many, or two changed places.
function oneSlip(a, b) {
  if (Math.abs(a.length - b.length) > 1) return false;
  let i = 0;
  while (i < a.length && a[i] === b[i]) i++;
  const same = (x, y) => a.slice(i + x) === b.slice(i + y);
  return same(1, 1) || same(1, 0) || same(0, 1) || (a[i] === b[i + 1] && a[i + 1] === b[i] && same(2, 2));
}

// word -> row -> weight: a title counts more than a promise, that more than text; a page stands for its sections.
function prepare(rows) {
  const weights = new Map(), pages = new Map();
  const add = (row, words, weight, most = weight) => {
    for (const word of words) {
      if (!weights.has(word)) weights.set(word, new Map());
      const found = weights.get(word), now = found.get(row) || 0;
      found.set(row, Math.max(now, Math.min(most, now + weight)));
    }
  };
  rows.forEach(([, level, address, page, title, text], row) => {
    const name = address.replace(/#.*/, ""), end = level ? 0 : text.indexOf(". ") + 1;
    if (!level) pages.set(name, row);
    add(row, indexed(level ? title : page), level ? 7 : 12);
    add(row, indexed(text.slice(0, end)), 5);              // a page begins with its promise
    if (level) add(row, indexed(page), 1.5);
    add(row, indexed(text.slice(end)), 1, 2.5);
    if (level && pages.has(name)) add(pages.get(name), indexed(`${title} ${text}`), .5, 2);
  });
  return { rows, weights, vocabulary: [...weights.keys()] };
}

// What a word of a query may mean: word of the index -> how well it fits, 0 to 1. Slips only where nothing else fits.
function meanings(word, { weights, vocabulary }, synonyms) {
  const fits = new Map(), ending = /^(s|es|d|ed|ing|er|ion)s?$/;
  const offer = (other, fit) => { if (fit > (fits.get(other) || 0)) fits.set(other, fit); };
  for (const other of vocabulary) {
    if (other === word) offer(other, 1);
    else if (other.startsWith(word) && word.length > 1) offer(other, other.length - word.length > 3 ? .6 : .85);
    else if (other.length > 2 && word.startsWith(other) && ending.test(word.slice(other.length))) offer(other, .8);
  }
  for (const other of Object.hasOwn(synonyms, word) ? synonyms[word] : []) if (weights.has(other)) offer(other, .7);
  if (fits.size || word.length < 4) return { fits, slip: "" };
  for (const other of vocabulary) {
    if (oneSlip(word, other)) offer(other, .7);
    else if (word.length > 4 && [-1, 0, 1].some((n) => oneSlip(word, other.slice(0, word.length + n)))) offer(other, .4);
  }
  const [slip] = [...fits.keys()].sort((a, b) => fits.get(b) - fits.get(a) || weights.get(b).size - weights.get(a).size);
  return { fits, slip: slip || "" };
}

const PLACES = [7, 1.3, .8], LEVELS = [1.6, 1, .75];       // guides, chapters, internals; pages, sections, functions

// Returns {found: [[row, its words]], whole: how many hold all words of the query, read: [[typed, read as]]}.
function findSections(index, query, synonyms = {}) {
  const typed = [...new Set(wordsOf(query))], telling = typed.filter((word) => !SILENT.has(word));
  const words = telling.length ? telling : typed, scores = new Map(), read = [];
  for (const word of words) {
    const { fits, slip } = meanings(word, index, synonyms), best = new Map();
    if (slip) read.push([word, slip]);
    for (const [other, fit] of fits) {
      for (const [row, weight] of index.weights.get(other)) {
        if (fit * weight > (best.get(row) || [0])[0]) best.set(row, [fit * weight, other]);
      }
    }
    const rarity = Math.log(2 + index.rows.length / Math.max(1, best.size));
    for (const [row, [weight, other]] of best) {
      const score = scores.get(row) || { sum: 0, held: [] };
      score.sum += rarity * weight;
      score.held.push(other);
      scores.set(row, score);
    }
  }
  const asked = typed.map((word) => (read.find(([from]) => from === word) || [0, word])[1]).join(" ");
  const ranked = [...scores].map(([row, { sum, held }]) => {
    const [place, level, , page, title] = index.rows[row];
    const name = wordsOf(level ? title : page).join(" "), share = held.length / words.length;
    const meant = level === 2 ? title.toLowerCase() === query.trim().toLowerCase() : name === asked && words.length > 1;
    const named = meant ? 6 : name.startsWith(asked) && level < 2 ? 2 : 1;      // a name of code as it is written
    return { row, held, share, rank: sum * share ** 3 * PLACES[place] * LEVELS[level] * named };
  }).sort((a, b) => b.rank - a.rank || a.row - b.row);
  return { found: ranked.map(({ row, held }) => [index.rows[row], held]), read,
    whole: ranked.filter(({ share }) => share === 1).length };
}
