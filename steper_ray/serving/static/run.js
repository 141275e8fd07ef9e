// One model at one question: its steps as they come, its answer, and what went wrong. It knows its own column alone,
// so that one run or two side by side are the same thing.

import { reason } from "./api.js";
import { Grounds } from "./grounds.js";
import { passageItem } from "./passages.js";
import { capital, copyOf, count, listed, seconds, totalsOf } from "./text.js";

const STOPS = {
  answered: (n) => `Answered after ${count(n, "step")}.`,
  unsure: (n) => `Answered after ${count(n, "step")}, but the model was not sure of it.`,
  step_limit: (n) => `Not settled after ${count(n, "step")}, the most allowed: this is the last thought.`,
  empty: () => "The model had nothing more to write: this is the last thought.",
  deadline: () => "Time was up before the answer was reached: this is the last thought, not an answer.",
  retriever_failed: () => "The search failed on the way: this is the last thought, not an answer.",
  generator_failed: () => "The model failed on the way: this is the last thought, not an answer.",
};

export class Run {
  result = null; // the whole response, once it is there
  problem = null; // why there is none
  #control = null;
  #steps = new Map(); // step index -> { item, query }
  #grounds = new Grounds();
  #timer = 0;

  // `model` null: whatever the server has. `watch` is told what happens: say(message), follow(element), again(run).
  constructor(model, watch, { headed = false } = {}) {
    this.model = model;
    this.watch = watch;
    this.element = copyOf("run-template");
    this.element.setAttribute("aria-label", model ?? "Reasoning");
    this.$(".run-head").hidden = !headed;
    this.$(".run-model").textContent = model ?? "";
    this.$(".run-cancel").hidden = true;
    this.$(".run-cancel").setAttribute("aria-label", `Cancel ${model ?? ""}`);
    this.$(".run-cancel").addEventListener("click", () => this.cancel());
    this.$(".again").addEventListener("click", () => watch.again(this));
  }

  get running() {
    return this.#control !== null;
  }

  // Where it is, in a word or two.
  get stage() {
    return this.problem ?? (this.#steps.size ? `step ${this.#steps.size} …` : "…");
  }

  $(selector) {
    return this.element.querySelector(selector);
  }

  // Asks, and shows what comes. Never throws: how it ended is in `result` or `problem`.
  async ask(body) {
    this.#clear();
    this.#control = new AbortController();
    this.#busy(true);
    try {
      for await (const { name, data } of reason(body, this.#control.signal)) this.#on[name]?.(data);
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#control = null;
      this.#busy(false);
    }
  }

  cancel() {
    this.#control?.abort();
  }

  // What was answered before, as if it had just come.
  show(result, problem) {
    for (const step of result?.steps ?? []) {
      this.#on.step_started(step);
      this.#on.passages({ ...step, duplicates: 0 });
      this.#on.step_done(step);
    }
    if (result) this.#on.answer(result);
    else this.#tell(problem);
  }

  #on = {
    step_started: ({ index, query }) => {
      const item = copyOf("step-template");
      item.setAttribute("aria-label", `Step ${index}`);
      item.classList.add("active");
      item.querySelector("q").textContent = query;
      this.$(".steps").append(item);
      this.#steps.set(index, { item, query });
      this.watch.follow(item);
      this.watch.say(`Step ${index}: searching for ${query}`, this);
    },
    passages: ({ index, passages, duplicates }) => {
      const { item, query } = this.#steps.get(index);
      item.querySelector(".verb").textContent = "Searched for";
      item.querySelector(".passages").append(...passages.map((passage) => {
        const card = passageItem(passage, this.#grounds.next, query);
        this.#grounds.addPassage(passage, card);
        return card;
      }));
      const note = item.querySelector(".note");
      if (duplicates) note.textContent = `${count(duplicates, "passage")} not added: already above, too long, or one too many`;
      else if (!passages.length) note.textContent = "nothing new found";
      note.hidden = !note.textContent;
      item.classList.add("writing");
      this.watch.follow(item);
    },
    delta: ({ index, text }) => {
      const sentence = this.#steps.get(index).item.querySelector(".sentence");
      sentence.textContent = (sentence.textContent + text).trimStart();
    },
    step_done: (step) => {
      const { item } = this.#steps.get(step.index);
      this.#grounds.write(step, item.querySelector(".sentence"), item.querySelector(".unsaid"));
      item.querySelector(".taken-back q").textContent = step.taken_back ?? "";
      item.querySelector(".taken-back").hidden = !step.taken_back;
      item.querySelector(".timing").textContent = listed([
        `searched ${seconds(step.retrieval_seconds)}`,
        `wrote ${seconds(step.generation_seconds)}`,
        `${count(step.usage.prompt_tokens, "token")} read, ${step.usage.completion_tokens} written`,
      ]);
      item.classList.remove("active", "writing");
      item.classList.add("done");
      this.watch.say(`Step ${step.index}: ${step.reasoning}`, this);
    },
    answer: (result) => {
      this.result = result;
      this.#closeSteps();
      const answer = this.$(".answer");
      this.$(".answer-text").textContent = result.answer || "No answer";
      answer.classList.toggle("unsure", result.stop_reason !== "answered");
      answer.classList.toggle("degraded", Boolean(result.degraded));
      this.$(".stop").textContent = (STOPS[result.stop_reason] ?? (() => result.stop_reason))(result.steps.length);
      this.$(".chain").replaceChildren(...this.#grounds.chain());
      const totals = totalsOf(result);
      this.$(".totals").textContent = listed([
        result.model,
        seconds(totals.seconds),
        `${count(totals.passages, "passage")} read`,
        `${count(totals.tokens, "token")} written`,
      ]);
      answer.hidden = false;
      this.watch.follow(answer);
      this.watch.say(`Answer: ${result.answer}. ${this.$(".stop").textContent}`, this, { always: true });
    },
  };

  #fail(error) {
    this.#closeSteps();
    if (error.name === "AbortError") this.#tell("Cancelled.");
    else this.#tell(capital(error.message), error.retryAfter);
  }

  // With a button to ask again, which waits as long as the server wants.
  #tell(message, retryAfter = null) {
    this.problem = message;
    const wait = retryAfter === null ? "" : ` Try again in ${count(retryAfter, "second")}.`;
    this.$(".problem-text").textContent = wait ? `${message.replace(/\.?$/, ".")}${wait}` : message;
    this.$(".run-problem").hidden = false;
    this.#countDown(retryAfter ?? 0);
    this.watch.follow(this.$(".run-problem"));
  }

  #countDown(left) {
    const again = this.$(".again");
    again.disabled = left > 0;
    again.textContent = left > 0 ? `Ask again in ${left} s` : "Ask again";
    if (left > 0) this.#timer = setTimeout(() => this.#countDown(left - 1), 1000);
  }

  #clear() {
    clearTimeout(this.#timer);
    this.result = this.problem = null;
    this.#steps = new Map();
    this.#grounds = new Grounds();
    this.$(".steps").replaceChildren();
    this.$(".answer").hidden = true;
    this.$(".run-problem").hidden = true;
  }

  #busy(is) {
    const leaving = !is && document.activeElement === this.$(".run-cancel");
    this.element.setAttribute("aria-busy", String(is));
    this.$(".run-cancel").hidden = !is;
    if (leaving) this.$(this.result ? ".answer" : ".again").focus({ preventScroll: true });
  }

  #closeSteps() {
    for (const { item } of this.#steps.values()) {
      item.classList.remove("active", "writing");
      if (!item.querySelector(".sentence").textContent) item.querySelector(".verb").textContent = "Searched for";
    }
  }
}
