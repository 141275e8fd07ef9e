// The server as the page sees it: JSON to load, and a question as a stream of events. It knows no element.

let token = "";
let locked = () => {};

// What to do when the server wants a token, or another one.
export function onLocked(callback) {
  locked = callback;
}

export function useToken(value) {
  token = value;
}

// What the server refuses, or what breaks. `retryAfter` is in seconds, null where the server names no time.
export class Refusal extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function headers() {
  return token ? { authorization: `Bearer ${token}` } : {};
}

export async function load(path) {
  const response = await reach(path, { headers: headers() });
  return response.json();
}

// The events of one question, the last of them `answer`. Throws Refusal, or AbortError once `signal` is aborted.
export async function* reason(body, signal) {
  const response = await reach("v1/reason", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  let ended = false;
  for await (const event of readEvents(response.body)) {
    signal.throwIfAborted();
    if (event.name === "error") throw new Refusal(event.data.error.message);
    ended ||= event.name === "answer";
    yield event;
  }
  if (!ended) throw new Refusal("the connection broke off");
}

async function reach(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal("the server cannot be reached");
  }
  if (!response.ok) throw await refusalOf(response);
  return response;
}

async function refusalOf(response) {
  const { status } = response;
  const wait = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const retryAfter = Number.isNaN(wait) ? null : wait;
  if (status === 401) {
    locked();
    return new Refusal(token ? "this token is not the server's" : "this server asks for an access token", status);
  }
  try {
    return new Refusal((await response.json()).error.message, status, retryAfter);
  } catch {
    return new Refusal(`the server answered ${status}`, status, retryAfter);
  }
}

async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await broken(reader.read());
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
      if (event.data) yield { name: event.name, data: JSON.parse(event.data) }; // not a comment, which has none
    }
  }
}

async function broken(reading) {
  try {
    return await reading;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal("the connection broke off");
  }
}
