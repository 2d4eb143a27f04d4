"""``neuroenc serve``: a page on this machine that takes a picture and shows what encoders predict for it."""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import socketserver
import threading
import time
import traceback
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError, NeuroencError, unknown_name
from neuroenc.data import Stimuli, list_pictures, picture_endings, read_picture, simulate_world
from neuroenc.encoders import list_encoders
from neuroenc.report import Page, prediction_section, prediction_view, region_responses
from neuroenc.study._predict import load_predictor

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
MOST_BYTES = 10 * 2**20  # of a picture
MOST_PIXELS = 50_000_000
DRAINED = 4 * MOST_BYTES  # of a request that is refused: a browser that cannot finish sending never reads the answer
SECONDS = 20.0  # between two parts of a request, and for all of it
WAIT = 60.0  # for another prediction to end
SAMPLES, REFERENCE = 8, 160
_SIDE = 320  # pixels of the picture that the page shows


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers


class Served:
    """An encoder on the page: its predictor, its voxels as the page draws them, and its answers to reference pictures.

    ``reference`` holds the mean response of each region to each reference picture. Colours and bars start at 0 for
    z-scored responses, and else, where 0 may be far from anything that a voxel does, at its mean over these pictures.
    Colours end at the largest, over the pictures, of the 99th percentile of distances from there, and bars of regions
    at their largest distance: the same for all pictures.
    """

    def __init__(self, name: str, predictor: Any, pictures: Stimuli, what: str) -> None:
        self.name, self.predictor = name, predictor
        voxels = predictor.voxels
        if "voxel" not in voxels.coords:
            raise DataError(f"voxels of {name} have no labels. Next step: fit it on neuroenc.data.make_responses(...).")
        card = predictor.card
        if not card.reads_pictures:
            read = ", ".join(sorted({str(table.get("kind", "image")) for table in card.features.values()}))
            found = f"reads {read}" if read else "was saved without the recipe of its features"
            raise DataError(f"{name} {found}, and the page takes pictures. Next step: an encoder of pictures.")
        zscored = card.units == "z" or card.zscored in ("session", "run")
        units = "z" if zscored else card.units
        predicted = predictor.predict(pictures)
        table = region_responses(predicted, voxels)
        # Voxels of an encoder may have no number at all.
        self.reference = table.pivot(index="stimulus", columns="roi", values="mean").dropna(axis=1)
        centre = predicted.values.mean(axis=0) * (0 if zscored else 1)
        away = (row[np.isfinite(row)] for row in (np.abs(values - centre) for values in predicted.values))
        top = max([0.0, *(float(np.quantile(row, 0.99)) for row in away if len(row))])
        middle = self.reference.mean() * (0 if zscored else 1)
        told = (
            f"Mean and SD are over a region's voxels. Percentile: of {len(pictures)} reference pictures ({what}), how"
            " many in a hundred have a lower predicted mean; the line behind a bar spans 90 % of them."
        )
        self.view = prediction_view(voxels) | {"name": name, "title": card.title, "units": units, "scale": top or 1.0}
        self.view["centre"] = [float(x) if np.isfinite(x) else 0.0 for x in centre]
        self.view["middle"] = middle.to_dict()
        self.view["regionScale"] = 1.1 * float((self.reference - middle).abs().to_numpy().max(initial=0)) or 1.0
        self.view["ranges"] = {roi: self.reference[roi].quantile([0.05, 0.95]).tolist() for roi in self.reference}
        if not zscored:
            told += " Colours and bars show how far a value lies from its mean over these pictures."
        limits = [f"Not good for: {' '.join(card.limits)}"] if card.limits else []
        self.view |= {"meaning": [card.meaning, told, *limits], "facts": _facts(card)}

    def answer(self, content: bytes) -> dict[str, Any]:
        """Regions and voxels for a picture's bytes, as JSON holds them."""
        image, changes = read_picture(content, "this file", most_pixels=MOST_PIXELS)
        shown = Stimuli(np.array(["picture"]), np.asarray(image)[None])
        predicted = self.predictor.predict(shown)
        regions = region_responses(predicted, self.predictor.voxels, self.reference).drop(columns="stimulus")
        width, height = image.size
        return {
            "encoder": self.name,
            "width": width,
            "height": height,
            "changes": list(changes),
            "picture": _thumbnail(image),
            "regions": regions.astype(object).where(regions.notna(), None).to_dict("records"),
            "values": base64.b64encode(predicted.values.astype("<f4").tobytes()).decode("ascii"),
        }


def _facts(card: Any) -> list[tuple[str, str]]:
    """What the page says of an encoder, where it is known."""
    fitted = f"{card.n_fit:,} rows" if card.n_fit else ""
    tested = f"{card.n_test:,} rows" if card.n_test else ""
    listed = {
        "subject": card.subject,
        "data": card.dataset,
        "pictures of the fit": card.pictures,
        "fitted on": fitted,
        "held out": ", ".join(x for x in (tested, card.split) if x),
        "licence": card.licence,
        "citation": card.citation,
    }
    return [(name, str(text)) for name, text in listed.items() if text]


class PredictionServer(ThreadingHTTPServer):
    """HTTP server of the page: on 127.0.0.1 alone, behind an address that only who started it knows.

    Every request must name this machine (``Host``, against rebinding of names), come from the page itself where it says
    where it comes from (``Origin``), and hold the token. Pictures are decoded in memory and written nowhere; one is
    predicted at a time.

    Parameters
    ----------
    encoders : mapping of name to Predictor
    pictures : Stimuli
        Reference pictures; the first are offered to try.
    what : str
        What these are.
    port : int
        0 for any that is free.
    """

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, encoders: Mapping[str, Any], pictures: Stimuli, what: str = "given", *, port: int = 0) -> None:
        check_whole("port", port, least=0)
        self._encoders, self._pictures, self._what = dict(encoders), pictures, what
        self._served: dict[str, Served] = {}
        self._lock = threading.Lock()
        self.token = secrets.token_urlsafe(24)
        said = [texts[0].rstrip(".") for texts in pictures.captions or () if texts] or pictures.ids.tolist()
        section = prediction_section(
            list(self._encoders),
            [{"name": said[n], "src": _thumbnail(pictures.image(n))} for n in range(min(SAMPLES, len(pictures)))],
            most_bytes=MOST_BYTES,
            endings=sorted(picture_endings()),
        )
        self.page = (
            Page("What would this cortex say?", kicker="Predicted responses, on this machine").add(section).html()
        )
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"port {port} of {HOST} cannot be had: {said}. Next step: --port 0 takes a free one."
            ) from error

    def server_bind(self) -> None:
        # HTTPServer asks for the machine's full name, which may take seconds and is not needed.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error."""

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def served(self, name: str) -> Served:
        """The encoder of that name, opened when it is first asked for."""
        with self.alone():
            return self._open(name)

    def answer(self, name: str, content: bytes) -> dict[str, Any]:
        """Prediction of one encoder for a picture's bytes."""
        with self.alone():
            return self._open(name).answer(content)

    def _open(self, name: str) -> Served:
        if name not in self._encoders:
            raise _Refused(404, unknown_name("encoder", name, self._encoders))
        if name not in self._served:
            self._served[name] = Served(name, self._encoders[name], self._pictures, self._what)
        return self._served[name]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One prediction at a time."""
        if not self._lock.acquire(timeout=WAIT):
            raise _Refused(503, f"another prediction has run for {WAIT:.0f} s. Next step: try again later.")
        try:
            yield
        finally:
            self._lock.release()


def _thumbnail(image: Any) -> str:
    """A picture as a data URI, at most `_SIDE` pixels wide and high."""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class _Handler(BaseHTTPRequestHandler):
    server: PredictionServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "neuroenc", ""
    timeout = SECONDS

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        """Addresses hold the token, and stay out of terminals and logs."""

    def handle_one_request(self) -> None:
        self._read = False
        super().handle_one_request()

    def _any(self) -> None:
        """Answer a request of any method."""
        try:
            content, kind = self._answer()
            self._send(200, content, kind)
        except _Refused as error:
            self._refuse(error.status, str(error), error.headers)
        except NeuroencError as error:
            self._refuse(400, str(error), {})
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self._refuse(
                500, f"unexpected {type(error).__name__}: {error}. This is a fault of neuroenc: please report it.", {}
            )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _any

    def _answer(self) -> tuple[bytes, str]:
        self._check_sender()
        try:
            split = urlsplit(self.path)
        except ValueError:
            raise _Refused(400, "this is no address.") from None
        token, _, name = split.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(
                403, "this address lacks its token. Next step: open the address that neuroenc serve printed."
            )
        asked = parse_qs(split.query)
        routes: dict[str, tuple[str, Callable[[str], tuple[bytes, str]]]] = {
            "": ("GET", lambda _: (self.server.page.encode(), "text/html; charset=utf-8")),
            "encoder": ("GET", lambda _: _json(self.server.served(asked.get("name", [""])[0]).view)),
            "predict": ("POST", lambda _: _json(self.server.answer(asked.get("encoder", [""])[0], self._body()))),
        }
        if name not in routes:
            raise _Refused(404, "there is nothing here. Legal: the page itself, encoder?name=, predict?encoder=.")
        method, work = routes[name]
        if self.command != method:
            raise _Refused(405, f"{self.command} is not legal here; legal: {method}.", Allow=method)
        return work(name)

    def _check_sender(self) -> None:
        """That the request means this server, and comes from its page."""
        hosts = self.headers.get_all("Host") or []
        host = hosts[0] if len(hosts) == 1 else ""
        if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
            raise _Refused(403, f"host {host!r} is not this machine. Legal: {', '.join(_NAMES)}.")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise _Refused(403, f"a page of {origin!r} may not ask this server; only its own may.")
        # Following a link to the page is legal from anywhere: who has its address holds the token.
        follows = self.headers.get("Sec-Fetch-Mode") == "navigate"
        if not follows and self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refused(403, "another page may not ask this server; only its own may.")

    def _length(self) -> int | None:
        """Bytes of the body that the request announces."""
        said = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") or len(said) != 1 or not (said[0].isascii() and said[0].isdigit()):
            return None
        return int(said[0][:18])

    def _body(self) -> bytes:
        length = self._length()
        if length is None:
            raise _Refused(
                411, "the picture comes with no Content-Length. Next step: send its bytes at once, not in chunks."
            )
        if length > MOST_BYTES:
            raise _Refused(
                413, f"the picture has {length:,} bytes; at most {MOST_BYTES:,} are read. Next step: make it smaller."
            )
        content = b"".join(self._parts(length))
        self._read = True
        if len(content) < length:
            raise _Refused(
                408, f"{len(content):,} of {length:,} bytes came within {SECONDS:.0f} s. Next step: send it again."
            )
        if not content:
            raise _Refused(400, "the request holds no picture. Next step: send the bytes of a picture file.")
        return content

    def _parts(self, length: int) -> Iterator[bytes]:
        """What comes of a body within `SECONDS`."""
        ends = time.monotonic() + SECONDS
        while length > 0 and time.monotonic() < ends:
            try:
                part = self.rfile.read1(min(length, 2**16))  # type: ignore[attr-defined]
            except TimeoutError:
                return
            if not part:
                return
            length -= len(part)
            yield part

    def _refuse(self, status: int, text: str, headers: Mapping[str, str]) -> None:
        length = self._length()
        if not self._read and length is not None and length <= DRAINED:
            for _ in self._parts(length):
                pass
        self._send(status, *_json({"error": text}), headers)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself, such as lines that are no HTTP, in the same form."""
        self.close_connection, self.command = True, getattr(self, "command", None) or "GET"
        self.request_version = getattr(self, "request_version", "") or "HTTP/1.1"
        self._send(code, *_json({"error": message or self.responses[code][0]}))

    def _send(self, status: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        sent = getattr(self, "headers", None) or {}
        if not self._read and ("Content-Length" in sent or "Transfer-Encoding" in sent):
            # What was not read would be taken for the next request.
            self.close_connection = True
        self.send_response(status)
        # The page's own policy, in its text, says what may run; this one holds for every answer.
        policy = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
        policy += "" if kind.startswith("text/html") else "; default-src 'none'; sandbox"
        fixed = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }
        for name, value in (fixed | dict(headers or {})).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode(), "application/json"


def serve(
    encoders: Sequence[str | os.PathLike[str]] = (),
    *,
    port: int = 0,
    pictures: str | os.PathLike[str] | None = None,
    device: str = "auto",
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve a page on this machine that shows what encoders predict for a picture, until Ctrl-C.

    The page is for this machine alone: it is reached at 127.0.0.1, behind a random address, and asks nothing of any
    other. Pictures are decoded in memory and not kept.

    Parameters
    ----------
    encoders : sequence of str or path
        Folders of saved encoders whose features are made of pictures, or names; by default all of
        `neuroenc.encoders.list_encoders`.
    port : int
        0 for any that is free.
    pictures : path, optional
        Folder of pictures to try and to compare with: the percentile of a region is that of its predicted response
        among those to at most 160 of them, evenly chosen. By default simulated scenes.
    device : str
    browser : bool
        Open the page.
    say : callable
        Called with each line that the command prints.

    Raises
    ------
    ConfigError
        An encoder is named twice, or the port is taken.
    DataError
        An encoder or a picture cannot be read, or features are not made of pictures.

    Examples
    --------
    >>> serve(["world-s1", "world-s1"])
    Traceback (most recent call last):
    neuroenc._core.errors.ConfigError: encoder 'world-s1' is named 2 times. Next step: name each once.
    """
    names = [os.fspath(x).rstrip("/") for x in encoders or list_encoders()]
    twice = [x for x in dict.fromkeys(names) if names.count(x) > 1]
    if twice:
        raise ConfigError(f"encoder {twice[0]!r} is named {names.count(twice[0])} times. Next step: name each once.")
    # Nothing of the reader's pictures is kept, features no more than pixels.
    opened = {name: load_predictor(name, device, cache=False) for name in names}
    shown, what = _reference(pictures)
    with PredictionServer(opened, shown, what, port=port) as server:
        say(f"opening {names[0]} ...")
        server.served(names[0])
        say(f"{server.url}\nThe page is for this machine alone. Ctrl-C ends it.")
        if browser:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")


def _reference(folder: str | os.PathLike[str] | None) -> tuple[Stimuli, str]:
    """Reference pictures and what they are."""
    if folder is None:
        return simulate_world(REFERENCE, seed=90_210, prefix="simulated scene"), "simulated scenes"
    files = list_pictures(folder)
    if not files:
        raise DataError(f"{folder} holds no picture. Legal endings: {', '.join(sorted(picture_endings()))}.")
    some = [files[k] for k in np.unique(np.linspace(0, len(files) - 1, min(REFERENCE, len(files))).round().astype(int))]
    return Stimuli(np.array(some), [Path(folder) / name for name in some]), f"of {folder}"
