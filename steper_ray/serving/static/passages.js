// A passage among the steps, with the words of the query that matched. What a server sends is put in as text.

import { copyOf } from "./text.js";

const COMMON = new Set(
  ("a an and are as at be by did do does for from had has have in is it of on or that the their this to was "
    + "were what when where which who whom whose why will with").split(" "),
);

// `number` is its place among all passages of the run, from 1: the mark that sentences carry.
export function passageItem(passage, number, query) {
  const item = copyOf("passage-template");
  const button = item.querySelector("button");
  const wanted = wordsOf(query);
  item.querySelector(".number").textContent = number;
  item.querySelector(".title").replaceChildren(...marked(passage.title, wanted));
  item.querySelector(".text").replaceChildren(...marked(passage.text, wanted));
  item.querySelector(".score b").textContent = passage.score.toFixed(1);
  button.addEventListener("click", () => expand(button, button.getAttribute("aria-expanded") !== "true"));
  return item;
}

export function expand(button, is = true) {
  button.setAttribute("aria-expanded", String(is));
}

// Close enough to the index's stemming to show what matched: "directed" and "director" stay apart there too.
function stem(word) {
  const lower = word.toLowerCase();
  return lower.length > 3 ? lower.replace(/(?:ies|es|s)$/u, "") : lower;
}

function wordsOf(text) {
  const words = text.match(/[\p{L}\p{N}]+/gu) ?? [];
  return new Set(words.filter((word) => !COMMON.has(word.toLowerCase())).map(stem));
}

function marked(text, wanted) {
  return text.split(/([\p{L}\p{N}]+)/u).filter(Boolean).map((piece) => {
    if (COMMON.has(piece.toLowerCase()) || !wanted.has(stem(piece))) return document.createTextNode(piece);
    const mark = document.createElement("mark");
    mark.textContent = piece;
    return mark;
  });
}
