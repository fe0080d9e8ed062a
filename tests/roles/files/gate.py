#!/usr/bin/python3
"""The only way out of a closed network, for a test: a mirror over https and a forward proxy, both with a password.

gate.py CERTIFICATE KEY USER:PASSWORD NAME=UPSTREAM…

Port 8443, with a certificate of a private CA: /NAME/… is what UPSTREAM/… holds. Addresses of other hosts in a package
index become addresses of this one (/via/HOST/…), as mirrors of PyPI do it.
Port 3128: a proxy for CONNECT and for plain HTTP.
Each request is a line on standard output.
"""

import base64
import http.server
import re
import select
import socket
import socketserver
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

#: Seconds after which the other side is taken for dead.
HANGS = 1200
#: Headers that are passed on, there and back.
ASKED = ("Accept", "Range", "If-Modified-Since", "If-None-Match", "User-Agent")
TOLD = ("Content-Type", "Last-Modified", "ETag", "Content-Range", "Accept-Ranges")


class Handler(http.server.BaseHTTPRequestHandler):
    """What both doors have in common."""

    protocol_version = "HTTP/1.1"
    login = ""
    upstreams: dict = {}

    def log_message(self, text, *words):
        """One line for each request."""
        sys.stdout.write("%s %s\n" % (type(self).__name__, text % words))
        sys.stdout.flush()

    def admitted(self, header, status, challenge):
        """Whether the password is there."""
        if self.headers.get(header) == "Basic " + base64.b64encode(self.login.encode()).decode():
            return True
        self.send_response(status)
        self.send_header(challenge, 'Basic realm="gate"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def pass_on(self, url, mine=""):
        """Answer with what another server says; `mine` takes the place of other hosts in an index."""
        request = urllib.request.Request(
            url, headers={name: self.headers[name] for name in ASKED if name in self.headers}
        )
        try:
            answer = urllib.request.urlopen(request, timeout=HANGS)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError as error:
            self.send_error(502, str(error))
            return
        with answer:
            kind = answer.headers.get("Content-Type", "")
            body = answer.read()
            if mine and ("html" in kind or "simple" in kind):
                body = re.sub(rb"https://([^/\"]+)/", mine.encode() + rb"/via/\1/", body)
            self.send_response(answer.status)
            for name in TOLD:
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)


class Mirror(Handler):
    """Port 8443."""

    def do_GET(self):
        """A file of one of the upstreams."""
        if not self.admitted("Authorization", 401, "WWW-Authenticate"):
            return
        name, _slash, rest = self.path[1:].partition("/")
        if name == "via":
            self.pass_on("https://" + rest)
        elif name in self.upstreams:
            self.pass_on(self.upstreams[name].rstrip("/") + "/" + rest, "https://" + self.headers["Host"])
        else:
            self.send_error(404)

    do_HEAD = do_GET


class Proxy(Handler):
    """Port 3128."""

    def do_GET(self):
        """Plain HTTP."""
        if self.admitted("Proxy-Authorization", 407, "Proxy-Authenticate"):
            self.pass_on(self.path)

    do_HEAD = do_GET

    def do_CONNECT(self):
        """Anything else, byte by byte."""
        if not self.admitted("Proxy-Authorization", 407, "Proxy-Authenticate"):
            return
        host, _colon, port = self.path.rpartition(":")
        try:
            there = socket.create_connection((host, int(port)), timeout=HANGS)
        except OSError as error:
            self.send_error(502, str(error))
            return
        with there:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while self.one_way(ends):
                pass
        self.close_connection = True

    def one_way(self, ends):
        """Pass on what came; false when one of the two has ended, or nobody says anything."""
        ready, _write, _fail = select.select(list(ends), [], [], HANGS)
        for end in ready:
            data = end.recv(65536)
            if not data:
                return False
            ends[end].sendall(data)
        return bool(ready)


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """One thread for each connection."""

    daemon_threads = True
    context: Any = None

    def process_request_thread(self, request, address):
        """TLS in the connection's own thread, so that nobody waits for a slow handshake."""
        if self.context:
            try:
                request = self.context.wrap_socket(request, server_side=True)
            except OSError as error:
                print("TLS: %s" % error, flush=True)
                return
        super().process_request_thread(request, address)

    def handle_error(self, request, address):
        """Clients that hang up are no news."""


def main():
    """Both doors."""
    certificate, key, Handler.login = sys.argv[1:4]
    Handler.upstreams = dict(item.split("=", 1) for item in sys.argv[4:])
    proxy = Server(("", 3128), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    mirror = Server(("", 8443), Mirror)
    mirror.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mirror.context.load_cert_chain(certificate, key)
    print("open", flush=True)
    mirror.serve_forever()


if __name__ == "__main__":
    main()
