// Small things that every module needs: elements by name, and numbers as they are read.

export const $ = (id) => document.getElementById(id);

// A fresh copy of a template's one element.
export function copyOf(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

export function make(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

export function count(n, word) {
  return `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
}

export function seconds(s) {
  return s < 0.0995 ? `${Math.max(1, Math.round(s * 1000))} ms` : `${s.toFixed(s < 10 ? 1 : 0)} s`;
}

export function moment(iso) {
  return new Date(iso).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

export function listed(parts) {
  return parts.filter(Boolean).join("  ·  ");
}

// "the model failed" begins a sentence; "max_steps: must be ..." begins with a field's name, which stays as it is.
export function capital(message) {
  return message.replace(/^[a-z](?=\w* )/, (first) => first.toUpperCase());
}

export function scrollTo(element, block = "nearest") {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block, behavior: calm ? "auto" : "smooth" });
}

export function totalsOf(result) {
  return {
    steps: result.steps.length,
    passages: result.steps.reduce((sum, step) => sum + step.passages.length, 0),
    tokens: result.usage.completion_tokens,
    seconds: result.steps.reduce((sum, step) => sum + step.retrieval_seconds + step.generation_seconds, 0),
  };
}
