// The page: asks over POST, reads server-sent events, and shows each step as it comes.
// Everything that a server sends is put in as text, never as markup: passages are data.

import { load, onLocked, useToken } from "./api.js";
import { Drawer } from "./drawer.js";
import { Exchange } from "./exchange.js";
import { History } from "./history.js";
import { $, capital, count, make, scrollTo } from "./text.js";

const SAID = 4; // messages that a screen reader may still have to read
const form = $("ask"), question = $("question");

let exchange = null; // the one that is shown
let longest = Infinity; // characters of a question, as the server says

// Several services may share one origin, each under its path.
const history = new History(() => localStorage, `steper-history:${location.pathname}`);
const drawer = new Drawer(history, reopen);

// ---- one question after another

function enter(asked) {
  exchange?.leave();
  exchange = new Exchange(asked, { say, changed });
  busy(0);
  clearProblem();
  $("examples").hidden = true;
  exchange.enter();
  return exchange;
}

function ask(text) {
  enter({
    id: crypto.randomUUID?.() ?? `${Date.now()}`, // not there without TLS, unless it is this machine
    at: new Date().toISOString(),
    question: text,
    unit: $("unit").value,
    stop: $("stop").value,
    maxSteps: Number($("max-steps").value) || null,
    models: chosen(),
  }).ask();
}

function reopen(entry) {
  const models = entry.runs.map(({ model, result }) => model ?? result?.model ?? null);
  question.value = entry.question;
  enter({ ...entry, models }).restore(entry);
  $("asked").focus();
}

function changed(current) {
  if (current !== exchange) return;
  busy(current.running);
  if (current.running) return;
  const { entry } = current;
  if (entry) history.add(entry);
  drawer.render();
}

function busy(running) {
  const is = running > 0;
  const leaving = document.activeElement === (is ? $("submit") : $("cancel"));
  $("cancel").hidden = !is;
  $("cancel").textContent = running > 1 ? "Cancel both" : "Cancel";
  $("submit").disabled = is;
  if (leaving) $(is ? "cancel" : "submit").focus(); // or a keyboard would be thrown back to the page's top
}

// ---- the form

function refuse(message) {
  problem(message);
  question.setAttribute("aria-invalid", "true");
  question.focus();
}

function problem(message) {
  $("problem").textContent = message;
  $("problem").hidden = false;
  scrollTo($("problem"));
}

function clearProblem() {
  $("problem").hidden = true;
  question.removeAttribute("aria-invalid");
}

// What is said is added and soon dropped: a message that replaced another one would silence it.
function say(message) {
  $("status").append(make("p", message));
  while ($("status").children.length > SAID) $("status").firstElementChild.remove();
}

// ---- models

// One or two names; null stands for what the server has, where there is no choice.
function chosen() {
  if ($("models").hidden) return [null];
  return [$("model").value, $("other").value].filter(Boolean);
}

// A model is not compared with itself.
function offerOthers() {
  const before = $("other").value;
  const names = [...$("model").options].map(({ value }) => value).filter((name) => name !== $("model").value);
  $("other").replaceChildren(new Option("nothing", ""), ...names.map((name) => new Option(name, name)));
  $("other").value = names.includes(before) ? before : "";
}

// ---- the beginning

async function introduce() {
  try {
    const [about, examples] = await Promise.all([load("v1/about"), load("v1/examples")]);
    const several = about.models.length > 1;
    const what = several ? count(about.models.length, "model") : about.model;
    $("about").textContent = `${what}  ·  ${count(about.passages, "passage")}`;
    longest = about.max_question_chars;
    $("models").hidden = !several;
    $("model").replaceChildren(...about.models.map((name) => new Option(name, name))); // the default one first
    offerOthers();
    $("unit").value = about.unit;
    $("stop").value = about.stop;
    $("max-steps").replaceChildren(
      ...Array.from({ length: about.max_steps }, (_, i) => new Option(count(i + 1, "step"), i + 1)),
    );
    $("max-steps").value = about.max_steps;
    showExamples(examples.questions);
    clearProblem();
  } catch (error) {
    problem(capital(error.message));
  }
}

function showExamples(questions) {
  $("example-list").replaceChildren(...questions.map((text) => {
    const item = document.createElement("li");
    const button = make("button", text);
    button.type = "button";
    button.addEventListener("click", () => {
      question.value = text;
      ask(text);
      $("asked").focus({ preventScroll: true }); // not the question: a phone would open its keyboard
    });
    item.append(button);
    return item;
  }));
  $("examples").hidden = !questions.length || !$("result").hidden;
}

// ---- what a person does

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  const length = [...text].length; // as the server counts: a character outside the BMP is one
  if (!text) refuse("Ask a question first.");
  else if (length > longest) {
    refuse(`The question has ${count(length, "character")}; it may have ${count(longest, "character")} at most.`);
  } else ask(text);
});
question.addEventListener("input", () => question.removeAttribute("aria-invalid"));
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!exchange?.running) form.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !drawer.isOpen) exchange?.cancel();
});
for (const kind of ["wheel", "touchmove"]) {
  document.addEventListener(kind, () => { if (exchange) exchange.following = false; }, { passive: true });
}
$("cancel").addEventListener("click", () => exchange?.cancel());
$("ask-again").addEventListener("click", () => ask(exchange.asked.question));
$("model").addEventListener("change", offerOthers);
onLocked(() => {
  $("token-row").hidden = false;
  $("token").focus();
});
$("token").addEventListener("change", () => {
  useToken($("token").value);
  introduce();
});

busy(0);
introduce();
