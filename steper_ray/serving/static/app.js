// The page: asks over POST, reads server-sent events, and shows each step as it comes.
// Everything that a server sends is put in as text, never as markup: passages are data.

const $ = (id) => document.getElementById(id);
const form = $("ask"), question = $("question"), token = $("token");

const STOPS = {
  answered: (n) => `Answered after ${count(n, "step")}.`,
  unsure: (n) => `Answered after ${count(n, "step")}, but the model was not sure of it.`,
  step_limit: (n) => `Not settled after ${count(n, "step")}, the most allowed: this is the last thought.`,
  empty: () => "The model had nothing more to write: this is the last thought.",
  deadline: () => "Time was up: this is the last thought.",
  retriever_failed: () => "The search failed on the way: this is the last thought.",
  generator_failed: () => "The model failed on the way: this is the last thought.",
};
const COMMON = new Set(
  ("a an and are as at be by did do does for from had has have in is it of on or that the their this to was "
    + "were what when where which who whom whose why will with").split(" "),
);

let running = null; // the AbortController of the question under way
let steps = new Map(); // step index -> its elements
let longest = Infinity; // characters of a question, as the server says
let following = false; // whether the page scrolls with the steps: until the reader scrolls on his own

function count(n, word) {
  return `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
}

function seconds(s) {
  return s < 0.0995 ? `${Math.max(1, Math.round(s * 1000))} ms` : `${s.toFixed(s < 10 ? 1 : 0)} s`;
}

function headers() {
  return token.value ? { authorization: `Bearer ${token.value}` } : {};
}

// ---- reading the stream

async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const frames = buffer.split("\n\n");
    buffer = frames.pop();
    for (const frame of frames) {
      const event = { name: "message", data: "" };
      for (const line of frame.split("\n")) {
        if (line.startsWith("event: ")) event.name = line.slice(7);
        if (line.startsWith("data: ")) event.data += line.slice(6);
      }
      yield { name: event.name, data: JSON.parse(event.data) };
    }
  }
}

async function problemOf(response) {
  if (response.status === 401) {
    askForToken();
    return token.value ? "this token is not the server's" : "this server asks for an access token";
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// ---- one question

async function ask(text) {
  running?.abort();
  const control = new AbortController();
  running = control;
  begin(text);
  try {
    await receive(text, control.signal);
  } catch (error) {
    if (running !== control) return; // a newer question has the page
    if (error.name === "AbortError") cancelled();
    else fail(error.message);
  } finally {
    if (running === control) {
      running = null;
      busy(false);
    }
  }
}

async function receive(text, signal) {
  const response = await fetch("v1/reason", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({
      question: text,
      stream: true,
      unit: $("unit").value,
      max_steps: Number($("max-steps").value) || null,
    }),
    signal,
  });
  if (!response.ok) throw new Error(await problemOf(response));
  let ended = false;
  for await (const { name, data } of readEvents(response.body)) {
    signal.throwIfAborted();
    ended ||= name === "answer" || name === "error";
    on[name]?.(data);
  }
  if (!ended) throw new Error("the connection broke off");
}

const on = {
  step_started({ index, query }) {
    const item = $("step-template").content.cloneNode(true).querySelector(".step");
    item.setAttribute("aria-label", `Step ${index}`);
    item.classList.add("active");
    item.querySelector("q").textContent = query;
    $("steps").append(item);
    follow(item);
    steps.set(index, { item, query });
    say(`Step ${index}: searching for ${query}`);
  },
  passages({ index, passages, duplicates }) {
    const { item, query } = steps.get(index);
    item.querySelector(".verb").textContent = "Searched for";
    item.querySelector(".passages").append(...passages.map((passage) => passageItem(passage, query)));
    const note = item.querySelector(".note");
    if (duplicates) note.textContent = `${count(duplicates, "passage")} found again, already above`;
    else if (!passages.length) note.textContent = "nothing found";
    note.hidden = !note.textContent;
    item.classList.add("writing");
    follow(item);
  },
  delta({ index, text }) {
    const sentence = steps.get(index).item.querySelector(".sentence");
    sentence.textContent = (sentence.textContent + text).trimStart();
  },
  step_done(step) {
    const { item } = steps.get(step.index);
    item.querySelector(".sentence").textContent = step.reasoning;
    item.querySelector(".timing").textContent = [
      `searched ${seconds(step.retrieval_seconds)}`,
      `wrote ${seconds(step.generation_seconds)}`,
      `${count(step.usage.prompt_tokens, "token")} read, ${step.usage.completion_tokens} written`,
    ].join("  ·  ");
    item.classList.remove("active", "writing");
    item.classList.add("done");
    say(`Step ${step.index}: ${step.reasoning}`);
  },
  answer(result) {
    closeSteps();
    $("answer-text").textContent = result.answer || "No answer";
    $("answer").classList.toggle("unsure", result.stop_reason !== "answered");
    $("stop").textContent = (STOPS[result.stop_reason] ?? (() => result.stop_reason))(result.steps.length);
    $("chain").replaceChildren(...result.steps.filter((step) => step.reasoning).map(chainItem));
    const time = result.steps.reduce((sum, s) => sum + s.retrieval_seconds + s.generation_seconds, 0);
    const found = result.steps.reduce((sum, s) => sum + s.passages.length, 0);
    $("totals").textContent = [
      result.model,
      seconds(time),
      `${count(found, "passage")} read`,
      `${count(result.usage.completion_tokens, "token")} written`,
    ].join("  ·  ");
    $("answer").hidden = false;
    follow($("answer"));
    say(`Answer: ${result.answer}. ${$("stop").textContent}`);
  },
  error({ error }) {
    fail(error.message);
  },
};

function chainItem(step) {
  const item = document.createElement("li");
  item.textContent = step.reasoning;
  return item;
}

// ---- passages

function passageItem(passage, query) {
  const item = $("passage-template").content.cloneNode(true).querySelector(".passage");
  const button = item.querySelector("button");
  const wanted = wordsOf(query);
  item.querySelector(".title").replaceChildren(...marked(passage.title, wanted));
  item.querySelector(".text").replaceChildren(...marked(passage.text, wanted));
  item.querySelector(".score b").textContent = passage.score.toFixed(1);
  button.addEventListener("click", () => {
    button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true"));
  });
  return item;
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

// ---- the state of the page

function begin(text) {
  steps = new Map();
  $("steps").replaceChildren();
  $("answer").hidden = true;
  clearProblem();
  $("examples").hidden = true;
  $("asked").textContent = text;
  $("result").hidden = false;
  following = true;
  busy(true);
  say("Asking");
}

function busy(is) {
  const leaving = document.activeElement === (is ? $("submit") : $("cancel"));
  $("cancel").hidden = !is;
  $("submit").disabled = is;
  if (leaving) $(is ? "cancel" : "submit").focus(); // or a keyboard would be thrown back to the page's top
  $("result").setAttribute("aria-busy", String(is));
}

function closeSteps() {
  for (const { item } of steps.values()) {
    item.classList.remove("active", "writing");
    if (!item.querySelector(".sentence").textContent) item.querySelector(".verb").textContent = "Searched for";
  }
}

function cancelled() {
  closeSteps();
  problem("Cancelled.");
}

function fail(message) {
  closeSteps();
  problem(message.replace(/^[a-z](?=\w* )/, (first) => first.toUpperCase())); // a field's name stays as it is
}

// Below the steps that led to it, or below the form where it is about what was typed.
function problem(message, place = $("result").hidden ? form : $("steps")) {
  place.after($("problem"));
  $("problem").textContent = message;
  $("problem").hidden = false;
  following = true;
  follow($("problem"));
}

function refuse(message) {
  problem(message, form);
  question.setAttribute("aria-invalid", "true");
  question.focus();
}

function clearProblem() {
  $("problem").hidden = true;
  question.removeAttribute("aria-invalid");
}

function follow(element) {
  if (!following) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}

function say(message) {
  $("status").textContent = message;
}

function askForToken() {
  $("token-row").hidden = false;
  token.focus();
}

async function load(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw new Error(await problemOf(response));
  return response.json();
}

async function introduce() {
  try {
    const [about, examples] = await Promise.all([load("v1/about"), load("v1/examples")]);
    $("about").textContent = `${about.model}  ·  ${count(about.passages, "passage")}`;
    longest = about.max_question_chars;
    $("unit").value = about.unit;
    $("max-steps").replaceChildren(
      ...Array.from({ length: about.max_steps }, (_, i) => new Option(count(i + 1, "step"), i + 1)),
    );
    $("max-steps").value = about.max_steps;
    showExamples(examples.questions);
    clearProblem();
  } catch (error) {
    fail(error.message);
  }
}

function showExamples(questions) {
  $("example-list").replaceChildren(...questions.map((text) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
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
    if (!running) form.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
for (const kind of ["wheel", "touchmove"]) {
  document.addEventListener(kind, () => { following = false; }, { passive: true });
}
$("cancel").addEventListener("click", () => running?.abort());
token.addEventListener("change", introduce);

busy(false);
introduce();
