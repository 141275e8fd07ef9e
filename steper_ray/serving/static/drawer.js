// The list of earlier questions: opens, deletes and clears what `History` keeps.

import { $, capital, copyOf, count, moment } from "./text.js";

export class Drawer {
  // `open` is called with the entry that was chosen.
  constructor(history, open) {
    this.history = history;
    this.open = open;
    $("open-history").addEventListener("click", () => {
      this.render();
      $("history").showModal();
    });
    $("close-history").addEventListener("click", () => $("history").close());
    $("clear-history").addEventListener("click", () => {
      history.clear();
      this.render();
      $("history-title").focus();
    });
    $("history").addEventListener("click", (event) => {
      if (event.target === $("history")) $("history").close(); // on the backdrop: what is inside covers the rest
    });
    window.addEventListener("storage", (event) => {
      if (event.key === history.key || event.key === null) this.render(); // another tab asked, or cleared
    });
    this.render();
  }

  get isOpen() {
    return $("history").open;
  }

  render() {
    const entries = this.history.entries();
    $("history-count").textContent = entries.length;
    $("history-count").hidden = !entries.length;
    $("open-history").setAttribute("aria-label", `History: ${count(entries.length, "earlier question")}`);
    $("history-note").textContent = this.history.kept
      ? `The last ${this.history.most} are kept in this browser, and nowhere else: whoever uses it can read them.`
      : "This browser keeps nothing for this page: they are gone when it is closed.";
    $("history-empty").hidden = entries.length > 0;
    $("clear-history").hidden = !entries.length;
    $("history-list").replaceChildren(...entries.map((entry) => this.#item(entry)));
  }

  #item(entry) {
    const item = copyOf("earlier-template");
    item.querySelector(".earlier-question").textContent = entry.question;
    item.querySelector(".earlier-answer").textContent = answersOf(entry);
    const time = item.querySelector("time");
    time.dateTime = entry.at;
    time.textContent = moment(entry.at);
    item.querySelector(".open").addEventListener("click", () => {
      $("history").close();
      this.open(entry);
    });
    const remove = item.querySelector(".delete");
    remove.setAttribute("aria-label", `Delete: ${capital(entry.question)}`);
    remove.addEventListener("click", () => this.#remove(entry, item));
    return item;
  }

  // The focus goes to what takes the deleted one's place, or a keyboard would be thrown out of the list.
  #remove(entry, item) {
    const place = [...$("history-list").children].indexOf(item);
    this.history.remove(entry.id);
    this.render();
    const left = $("history-list").children;
    (left[Math.min(place, left.length - 1)]?.querySelector(".delete") ?? $("history-title")).focus();
  }
}

function answersOf(entry) {
  const answers = entry.runs.map(({ result, problem }) => result?.answer || problem || "No answer");
  if (answers.length === 1) return answers[0];
  return entry.runs.map(({ model }, n) => `${model}: ${answers[n]}`).join("  ·  ");
}
