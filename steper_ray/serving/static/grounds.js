// Ties each sentence of one run to the passages that the server names for it, both ways: a mark leads to its passage,
// a passage to the sentences that were read in it. Which passages those are is the server's rule, not this page's.

import { expand } from "./passages.js";
import { copyOf, make, scrollTo } from "./text.js";

export class Grounds {
  #passages = new Map(); // id -> { item, number, title }
  #sentences = []; // { number, text, ids, open, unsaid, inStep, inChain }

  // Its number among the run's passages, from 1.
  get next() {
    return this.#passages.size + 1;
  }

  addPassage(passage, item) {
    this.#passages.set(passage.id, { item, number: this.next, title: passage.title || passage.id });
  }

  // What a step wrote, with marks behind each sentence; `place` is the paragraph, `note` what is below it.
  write(step, place, note) {
    place.replaceChildren();
    let at = 0;
    for (const sentence of step.sentences) {
      const begin = step.reasoning.indexOf(sentence.text, at);
      place.append(step.reasoning.slice(at, begin));
      at = begin + sentence.text.length;
      place.append(this.#sentence(sentence));
    }
    place.append(step.reasoning.slice(at));
    const unsaid = step.sentences.map(unsaidOf).filter(Boolean);
    note.textContent = unsaid.join("; ");
    note.hidden = !unsaid.length;
  }

  // All sentences so far, each with its passages by name.
  chain() {
    return this.#sentences.map((sentence) => {
      const item = copyOf("sentence-template");
      sentence.inChain = item.querySelector(".said");
      sentence.inChain.textContent = sentence.text;
      const sources = item.querySelector(".sources");
      sources.append(...sentence.ids.map((id) => {
        const { number, title } = this.#passages.get(id);
        const button = make("button", "", "source");
        button.append(make("b", number), ` ${title}`);
        this.#lead(button, id, sentence);
        const entry = document.createElement("li");
        entry.append(button);
        return entry;
      }));
      sources.hidden = !sentence.ids.length;
      const note = item.querySelector(".unsaid");
      note.textContent = sentence.unsaid || (sentence.open ? "Has no name, number or answer to look up" : "");
      note.classList.toggle("open", sentence.open);
      note.hidden = !note.textContent;
      return item;
    });
  }

  #sentence({ text, grounded_by: ids, ungrounded }) {
    const known = (ids ?? []).filter((id) => this.#passages.has(id));
    const sentence = { text, ids: known, open: ids === null, unsaid: unsaidOf({ grounded_by: ids, ungrounded }) };
    sentence.number = this.#sentences.push(sentence);
    sentence.inStep = make("span", text, "said");
    sentence.inStep.tabIndex = -1;
    const marks = known.map((id) => {
      const { number, title } = this.#passages.get(id);
      const mark = make("button", "", "cite");
      mark.dataset.number = number; // shown by the style sheet: what is copied is the sentence alone
      mark.setAttribute("aria-label", `Passage ${number}: ${title}`);
      this.#lead(mark, id, sentence);
      this.#tell(id, sentence);
      return mark;
    });
    const whole = document.createElement("span");
    whole.append(sentence.inStep, ...marks);
    return whole;
  }

  // From a sentence's mark to its passage: pointing at it lights both up, pressing it goes there.
  #lead(button, id, sentence) {
    button.type = "button";
    const { item } = this.#passages.get(id);
    lights(button, () => [item, ...placesOf(sentence)]);
    button.addEventListener("click", () => {
      const card = item.querySelector(".card-button");
      expand(card);
      scrollTo(item, "center");
      card.focus({ preventScroll: true });
    });
  }

  // From a passage back to a sentence that was read in it.
  #tell(id, sentence) {
    const { item } = this.#passages.get(id);
    const uses = item.querySelector(".uses");
    const button = make("button", sentence.number, "use");
    button.setAttribute("aria-label", `Sentence ${sentence.number}: ${sentence.text}`);
    button.type = "button";
    lights(button, () => placesOf(sentence));
    button.addEventListener("click", () => {
      const place = sentence.inChain ?? sentence.inStep;
      scrollTo(place, "center");
      place.focus({ preventScroll: true });
    });
    if (uses.hidden) uses.replaceChildren("Grounds sentence ", button);
    else {
      uses.firstChild.data = "Grounds sentences ";
      uses.append(", ", button);
    }
    uses.hidden = false;
    item.classList.add("used");
  }
}

function placesOf(sentence) {
  return [sentence.inStep, sentence.inChain].filter(Boolean);
}

// Null is a sentence with nothing to look for; an empty list one that no passage holds anything of.
function unsaidOf({ grounded_by: ids, ungrounded }) {
  if (ids === null) return "";
  if (!ids.length) return "No passage says this";
  return ungrounded.length ? `In no passage: ${ungrounded.map((words) => `“${words}”`).join(", ")}` : "";
}

function lights(button, elements) {
  const set = (is) => elements().forEach((element) => element.classList.toggle("lit", is));
  for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => set(true));
  for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => set(false));
}
