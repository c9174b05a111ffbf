"""Open a page in headless Chromium, over the DevTools protocol, and say what is wrong with it."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)  # fmt: skip
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
# Elements whose file did not load; a video has loaded once its size is known.
_UNLOADED = """
Promise.all([...document.querySelectorAll('img, video')].map(each => new Promise(done => {
    const failed = each.currentSrc || each.src;
    if (each.tagName == 'IMG') done(each.complete && each.naturalWidth ? null : failed);
    else if (each.readyState > 0) done(null);
    else { each.onloadedmetadata = () => done(null); each.onerror = () => done(failed);
           setTimeout(() => done(failed), 10000); }
}))).then(all => ({shown: all.length, unloaded: all.filter(each => each)}))
"""


class Browser:
    """A running Chromium: a context manager."""

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.to, self.reply, theirs_out = *os.pipe(), *os.pipe()
        # Chromium reads commands from 3 and writes to 4. Copies above 9 survive both redirections.
        copies = [fcntl.fcntl(pipe, fcntl.F_DUPFD, 10) for pipe in (theirs_in, theirs_out)]
        command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={self.folder.name}"]
        redirected = 'exec 3<&{} 4>&{} && exec "$@"'.format(*copies)
        self.process = subprocess.Popen(
            ["bash", "-c", redirected, "bash", *command], pass_fds=copies, stderr=subprocess.DEVNULL
        )
        for pipe in (theirs_in, theirs_out, *copies):
            os.close(pipe)
        self.limit = threading.Timer(60, self.process.kill)
        self.limit.start()
        self.number, self.session, self.events, self.rest = 0, None, [], b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Log", "Runtime"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.limit.cancel()
        self.process.kill()
        self.process.wait()
        os.close(self.reply)
        os.close(self.to)
        self.folder.cleanup()

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.number:
            pass
        assert "error" not in reply, reply
        return reply["result"]

    def receive(self):
        while b"\0" not in self.rest:
            part = os.read(self.reply, 2**16)
            assert part, "Chromium ended"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, page):
        """Returns (errors in the console, number of pictures and videos, those not loaded)."""
        self.events.clear()
        self.send("Page.navigate", url=Path(page).resolve().as_uri())
        while "Page.loadEventFired" not in [event["method"] for event in self.events]:
            self.receive()
        result = self.send(
            "Runtime.evaluate", expression=_UNLOADED, awaitPromise=True, returnByValue=True
        )
        found = result["result"]["value"]
        errors = [
            event["params"]
            for event in self.events
            if event["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")
            or (event["method"] == "Log.entryAdded")
        ]
        return errors, found["shown"], found["unloaded"]
