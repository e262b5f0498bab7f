"""A page in headless Chromium, driven over its DevTools protocol."""

import asyncio
import json
import subprocess
import threading
import time

import aiohttp

_SECONDS = 30.0


class Page:
    """A browser with one page; use it in a `with` statement."""

    def __init__(self, browser, address, profile):
        self.errors = []
        self._address = address
        self._command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu"]
        self._command += [f"--user-data-dir={profile}/chrome", "--remote-debugging-port=0"]
        self._command += ["--disable-dev-shm-usage", address]
        self._port_file = profile / "chrome" / "DevToolsActivePort"
        self._loop = asyncio.new_event_loop()
        self._replies = {}
        self._number = 0

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        end = time.monotonic() + _SECONDS
        while not (self._port_file.exists() and self._port_file.read_text().strip()):
            assert time.monotonic() < end, "the browser did not start"
            time.sleep(0.1)
        port = int(self._port_file.read_text().splitlines()[0])
        self._await(self._connect(port))
        self._await(self._send("Runtime.enable"))
        self._await(self._send("Log.enable"))
        # An empty page is complete, too, and its context ends when the other one comes.
        here = f"location.href.startsWith({json.dumps(self._address)})"
        loaded = f"{here} && document.readyState === 'complete'"
        while not self._await(self._holds(loaded)):
            assert time.monotonic() < end, "the page did not load"
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self._await(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._process.terminate()
        self._process.wait(60)

    def run(self, script):
        """Returns the value of a script."""
        answer = self._await(self._send("Runtime.evaluate", expression=script, returnByValue=True))
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition):
        """Waits until a script gives true."""
        end = time.monotonic() + _SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def _await(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_SECONDS)

    async def _holds(self, condition):
        answer = await self._ask("Runtime.evaluate", expression=condition, returnByValue=True)
        return answer.get("result", {}).get("result", {}).get("value") is True

    async def _connect(self, port):
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as response:
            pages = [item for item in await response.json() if item["type"] == "page"]
        self._socket = await self._session.ws_connect(
            pages[0]["webSocketDebuggerUrl"], max_msg_size=0
        )
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self):
        async for message in self._socket:
            content = json.loads(message.data)
            if "id" in content:
                self._replies.pop(content["id"]).set_result(content)
            elif content["method"] == "Runtime.exceptionThrown":
                self.errors.append(content["params"]["exceptionDetails"])

    async def _send(self, method, **parameters):
        content = await self._ask(method, **parameters)
        assert "error" not in content, content
        return content["result"]

    async def _ask(self, method, **parameters):
        self._number += 1
        reply = self._replies[self._number] = self._loop.create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        return await reply
