// Earlier questions with their answers, kept in this browser and nowhere else: bounded, and forgotten on request.
// A browser may refuse to keep anything, or have no room: then they last as long as the page is open. No elements.

const MOST = 30; // questions
const SHAPE = 1; // of an entry; others are left out

export class History {
  #memory = []; // what the browser does not keep
  #storage;
  #key;

  // `storage` is a function: asking a browser for its storage may throw already.
  constructor(storage, key) {
    this.#key = key;
    try {
      this.#storage = storage();
      this.#storage.getItem(key);
    } catch {
      this.#storage = null;
    }
  }

  get key() {
    return this.#key;
  }

  get kept() {
    return this.#storage !== null;
  }

  get most() {
    return MOST;
  }

  // The newest first.
  entries() {
    if (!this.kept) return this.#memory;
    try {
      const stored = JSON.parse(this.#storage.getItem(this.#key) ?? "[]");
      return stored.filter((entry) => entry.shape === SHAPE);
    } catch {
      return []; // not ours, or broken: the next write replaces it
    }
  }

  // In place of one with the same id.
  add(entry) {
    this.#write([{ ...entry, shape: SHAPE }, ...this.entries().filter(({ id }) => id !== entry.id)].slice(0, MOST));
  }

  remove(id) {
    this.#write(this.entries().filter((entry) => entry.id !== id));
  }

  clear() {
    this.#write([]);
  }

  #write(entries) {
    this.#memory = entries;
    if (!this.kept) return;
    if (!entries.length) return this.#forget();
    // The oldest make room.
    for (let n = entries.length; n > 0; n -= 1) {
      try {
        this.#storage.setItem(this.#key, JSON.stringify(entries.slice(0, n)));
        return;
      } catch {
        continue;
      }
    }
    this.#forget();
    this.#storage = null;
  }

  #forget() {
    this.#storage.removeItem(this.#key);
  }
}
