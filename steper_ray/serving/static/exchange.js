// One question, put to one model or to two side by side, and how the two compare. It fills the result of the page.

import { Run } from "./run.js";
import { $, count, make, moment, scrollTo, seconds, totalsOf } from "./text.js";

export class Exchange {
  following = true; // whether the page scrolls with the steps: until the reader scrolls on his own
  #open = 0;
  #live = true; // no longer once another one has the page

  // `asked` is { id, at, question, unit, stop, maxSteps, models }; `page` is told changed(exchange), and says messages.
  constructor(asked, page) {
    this.asked = asked;
    this.page = page;
    const watch = {
      say: (message, run, { always = false } = {}) => this.#say(message, run, always),
      follow: (element) => this.#follow(element),
      again: (run) => this.#again(run),
    };
    this.runs = asked.models.map((model) => new Run(model, watch, { headed: this.compares }));
  }

  get compares() {
    return this.asked.models.length > 1;
  }

  // How many models are at it.
  get running() {
    return this.#open;
  }

  // Takes the place of what was shown before.
  enter() {
    $("asked").textContent = this.asked.question;
    $("stored").hidden = true;
    $("runs").replaceChildren(...this.runs.map((run) => run.element));
    $("runs").classList.toggle("two", this.compares);
    document.body.classList.toggle("comparing", this.compares);
    $("comparison").hidden = !this.compares;
    $("result").hidden = false;
    this.#compare();
  }

  ask() {
    if (this.compares) {
      this.page.say(`Asking ${this.asked.models.join(" and ")}`);
      scrollTo($("asked"));
    } else this.page.say("Asking");
    this.runs.forEach((run) => this.#begin(run));
  }

  // What was kept of an earlier one; nothing is asked.
  restore(entry) {
    this.#live = false; // nothing of this is news
    this.runs.forEach((run, n) => run.show(entry.runs[n].result, entry.runs[n].problem));
    this.#compare();
    this.#live = true;
    $("stored-at").dateTime = entry.at;
    $("stored-at").textContent = moment(entry.at);
    $("stored").hidden = false;
  }

  cancel() {
    this.runs.forEach((run) => run.cancel());
  }

  // Whatever still comes changes nothing on the page.
  leave() {
    this.#live = false;
    this.cancel();
  }

  // As it is kept; null where no run has an answer.
  get entry() {
    if (!this.runs.some((run) => run.result)) return null;
    const runs = this.runs.map(({ model, result, problem }) => ({ model, result, problem }));
    return { ...this.asked, runs };
  }

  async #begin(run) {
    const { question, unit, stop, maxSteps } = this.asked;
    const asked = { question, unit, stop, max_steps: maxSteps };
    this.#open += 1;
    const done = run.ask(run.model === null ? asked : { ...asked, model: run.model });
    this.#changed();
    await done;
    this.#open -= 1;
    this.#changed();
    if (this.compares && !this.running && this.#live) this.page.say(this.#verdict());
  }

  // The button that was pressed is gone: a keyboard goes on at the one that cancels.
  #again(run) {
    this.#begin(run);
    (this.compares ? run.$(".run-cancel") : $("cancel")).focus();
  }

  #changed() {
    if (!this.#live) return;
    this.#compare();
    this.page.changed(this);
  }

  #say(message, run, always) {
    if (!this.#live) return;
    this.#compare();
    // Of two at once only the ends are told: their steps would talk over each other.
    if (!this.compares) this.page.say(message);
    else if (always) this.page.say(`${run.model}: ${message}`);
  }

  #follow(element) {
    // Two columns would pull the page to and fro.
    if (this.#live && this.following && !this.compares) scrollTo(element);
  }

  #compare() {
    if (!this.compares) return;
    $("verdict").textContent = this.#verdict();
    $("compared").replaceChildren(...this.runs.map(rowOf));
  }

  #verdict() {
    const answered = this.runs.filter((run) => run.result && !run.result.degraded);
    if (!this.runs.every(ended)) return "Comparing …";
    if (!answered.length) return "Neither model answered";
    if (answered.length < this.runs.length) return `Only ${answered[0].model} answered`;
    return new Set(answered.map((run) => comparable(run.result.answer))).size === 1 ? "Same answer" : "Different answers";
  }
}

function ended(run) {
  return run.result !== null || run.problem !== null;
}

// The server's rule (answers.comparable): without case, ASCII punctuation and articles; where these are all there is, the
// text itself without the punctuation around it. Never across scripts: \b and [a-z] know ASCII alone.
function comparable(answer) {
  const squeezed = answer.toLowerCase().trim().replace(/\s+/gu, " ");
  const words = squeezed.replace(/[!-/:-@[-`{-~]/g, "").replace(/(?<![\p{L}\p{N}])(?:a|an|the)(?![\p{L}\p{N}])/gu, " ");
  const normal = words.trim().replace(/\s+/gu, " ");
  return normal || squeezed.replace(/^[.,;:!?"'()[\]{} ]+|[.,;:!?"'()[\]{} ]+$/g, "") || squeezed;
}

function rowOf(run) {
  const row = document.createElement("tr");
  const name = make("th", run.model);
  name.scope = "row";
  if (!run.result) {
    const why = make("td", run.stage);
    why.colSpan = 4;
    row.append(name, why);
    return row;
  }
  const totals = totalsOf(run.result);
  const answer = run.result.degraded ? "No finished answer" : run.result.answer || "No answer";
  const cells = [answer, totals.steps, totals.tokens.toLocaleString("en"), seconds(totals.seconds)];
  row.append(name, ...cells.map((text) => make("td", text)));
  row.title = count(totals.passages, "passage") + " read";
  return row;
}
