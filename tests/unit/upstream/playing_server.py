"""Plays a model server over a real socket: ``playing_server.py PORT [options]``.

--die-before-ready   write some lines and exit with code 3
--deaf               never open the port
--stubborn           ignore SIGTERM
--child FILE         start a child of its own and write the child's pid to FILE
--crash-on FILE      exit with code 7 each time FILE appears (and remove it)
"""

import argparse
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def crash_when(file: Path) -> None:
    while not file.exists():
        time.sleep(0.02)
    file.unlink()
    print("engine: out of luck", flush=True)
    os._exit(7)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--die-before-ready", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--child", type=Path)
    parser.add_argument("--crash-on", type=Path)
    options = parser.parse_args()
    print("loading the model", flush=True)
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.child:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
        options.child.write_text(str(child.pid))
    if options.die_before_ready:
        print("ValueError: no such architecture", file=sys.stderr, flush=True)
        sys.exit(3)
    if options.deaf:
        time.sleep(120)
    if options.crash_on:
        threading.Thread(target=crash_when, args=(options.crash_on,), daemon=True).start()
    http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


main()
