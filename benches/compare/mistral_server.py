"""Puts mistral.rs's Python module behind /v1/completions: its wheel has no server.

    python3 mistral_server.py MODEL.gguf PORT

An answer is one event, when it is whole, and there is one at a time: the speed of one stream means something, the time
to its first token does not.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mistralrs import CompletionRequest, Runner, Which

model, port = Path(sys.argv[1]), int(sys.argv[2])
runner = Runner(which=Which.GGUF(str(model.parent), model.name), max_seqs=16)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer("application/json", b"{}")

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request = CompletionRequest(asked["prompt"], "default", max_tokens=asked["max_tokens"], temperature=0.0,
                                    ignore_eos=asked.get("ignore_eos", False))  # fmt: skip
        done = runner.send_completion_request(request)
        usage = {"prompt_tokens": done.usage.prompt_tokens, "completion_tokens": done.usage.completion_tokens}
        choice = {"index": 0, "text": done.choices[0].text, "finish_reason": done.choices[0].finish_reason}
        event = json.dumps({"object": "text_completion", "choices": [choice], "usage": usage})
        self.answer("text/event-stream", f"data: {event}\n\ndata: [DONE]\n\n".encode())

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
