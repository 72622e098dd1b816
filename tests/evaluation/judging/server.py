"""A chat-completions server on this machine that can be told to misbehave."""

import http.server
import json
import threading
import time
from contextlib import contextmanager

GOOD = '{"fluency": 5, "relevance": 4, "completeness": 3, "proficiency": 4}'


def completion(text, prompt_tokens=100, completion_tokens=10):
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage})


class Stub:
    """Answers by `plan(number of the request, body)`: status, headers, body, seconds to wait."""

    def __init__(self, plan):
        self.plan = plan
        self.requests, self.times, self.keys = [], [], []
        self.lock = threading.Lock()


def always(text=GOOD, status=200, headers=None, wait=0.0):
    return lambda number, body: (status, headers or {}, completion(text), wait)


@contextmanager
def serve(plan):
    """The stub and its address while the block runs."""
    stub = Stub(plan)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                stub.requests.append((self.path, body))
                stub.times.append(time.monotonic())
                stub.keys.append(self.headers.get("Authorization"))
                number = len(stub.requests)
            status, headers, text, wait = stub.plan(number, body)
            time.sleep(wait)
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())
            except BrokenPipeError:
                pass  # the client did not wait

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stub, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
