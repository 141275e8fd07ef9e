"""An OpenAI-compatible endpoint in a thread that answers questions of the miniature, under weather."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = {"choices": [{"index": 0, "text": " So the answer is: Bo.", "finish_reason": None}]}
END = {
    "choices": [{"index": 0, "text": "", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
}


def _in_turns(event):
    """The event as the chat route sends it."""
    (choice,) = event["choices"]
    return event | {"choices": [{**choice, "delta": {"content": choice["text"]}}]}


class Weather:
    """`kind` says what happens to a question: "well", a status, "cut" (the stream ends in the middle) or "silence".

    With `chat` it has the chat route alone. `asked` counts the requests of each question, `answered` those that were
    answered.
    """

    def __init__(self, kind=lambda question: "well", chat=False):
        self.kind, self.chat = kind, chat
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._over = threading.Event()
        weather = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if weather.chat and "messages" not in body:
                    return weather._send(
                        self, 404, b'{"error": {"message": "no such route"}}', "application/json"
                    )
                messages = body.get("messages") or [{"role": "user", "content": body.get("prompt")}]
                weather.answer(self, [m["content"] for m in messages if m["role"] == "user"][-1])

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler, prompt):
        question = prompt.rpartition("Q: ")[2].partition("\n")[0]
        self.asked[question] += 1
        kind = self.kind(question)
        if isinstance(kind, int):
            message = {"error": {"message": "This is a chat model", "code": None, "type": "error"}}
            self._send(handler, kind, json.dumps(message).encode(), "application/json")
        elif kind == "silence":
            self._over.wait()
            handler.close_connection = True
        elif kind == "cut":
            handler.send_response(200)
            handler.send_header("content-type", "text/event-stream")
            handler.send_header("content-length", "100000")
            handler.end_headers()
            handler.wfile.write(b"data: " + json.dumps(CHUNK).encode()[:40])
            handler.close_connection = True
        else:
            self.answered[question] += 1
            events = (CHUNK, END) if not self.chat else (_in_turns(CHUNK), _in_turns(END))
            events = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            self._send(handler, 200, events.encode(), "text/event-stream")

    @staticmethod
    def _send(handler, status, body, kind):
        handler.send_response(status)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
