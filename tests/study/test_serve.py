"""The server of the page of predictions, over the loopback: what it answers, and everything that it refuses."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import zlib
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.cli._main import app
from neuroenc.data import Stimuli, simulate_world
from neuroenc.study import _serve, load_predictor, serve
from serving import ColourPredictor


def pictures(n, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 12, 16, 3), dtype=np.uint8)
    return Stimuli([f"picture {k}" for k in range(n)], pixels)


@pytest.fixture(scope="module")
def server():
    predictors = {"colours": ColourPredictor(placed=False), "other": ColourPredictor(9, placed=False, seed=1)}
    with _serve.PredictionServer(predictors, pictures(12), "made up") as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def ask(server):
    """Status, headers and body of a request; ``token`` and ``Host`` are right unless they are given."""

    def asked(method, path, body=None, token=server.token, **headers):
        connection = HTTPConnection("127.0.0.1", server.server_port, timeout=100)
        try:
            connection.request(method, f"/{token}/{path}", body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            kind = answer.headers["Content-Type"]
            return (
                answer.status,
                answer.headers,
                json.loads(content) if kind == "application/json" else content.decode(),
            )
        finally:
            connection.close()

    return asked


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_the_page_lists_encoders_and_pictures_to_try_and_may_fetch_from_its_server_alone(server, ask):
    status, headers, page = ask("GET", "")
    assert status == 200
    assert "connect-src &#39;self&#39;" in page
    assert "default-src &#39;none&#39;" in page
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers
    assert "<option>colours</option>" in page
    assert "<option>other</option>" in page
    assert page.count("data:image/png;base64,") == _serve.SAMPLES
    # The token stands in the address alone: a page that is saved gives nothing away.
    assert server.token not in page
    assert server.server_address[0] == "127.0.0.1"


def test_predictions_are_those_of_the_encoder_by_voxel_and_by_region(server, ask):
    predictor = ColourPredictor(placed=False)
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    status, _, found = ask("POST", "predict?encoder=colours", encoded(image))
    assert status == 200
    expected = predictor.predict(Stimuli(["x"], np.asarray(image)[None])).values[0]
    values = np.frombuffer(base64.b64decode(found["values"]), "<f4")
    np.testing.assert_array_equal(values, expected)
    assert (found["width"], found["height"], found["changes"]) == (30, 40, [])
    others = predictor.predict(pictures(12)).values
    regions = {row["roi"]: row for row in found["regions"]}
    assert list(regions) == ["V1", "FFA", "PPA"]
    for name, row in regions.items():
        mask = predictor.voxels["roi"].values == name
        assert row["n_voxels"] == mask.sum()
        assert row["mean"] == pytest.approx(expected[mask].mean(), abs=1e-6)
        assert row["sd"] == pytest.approx(expected[mask].std(), abs=1e-6)
        lower = (others[:, mask].astype(float).mean(axis=1) < expected[mask].astype(float).mean()).mean()
        assert row["percentile"] == pytest.approx(100 * lower)
        assert row["median_r"] == pytest.approx(np.median(predictor.voxels["r"].values[mask]))


def test_voxels_without_a_number_are_left_out(server, ask, monkeypatch):
    monkeypatch.setitem(server._encoders, "gaps", ColourPredictor(6, placed=False, unknown=[0, 1, 4]))
    status, _, view = ask("GET", "encoder?name=gaps")
    assert status == 200
    # All of FFA is unknown, half of V1.
    assert list(view["ranges"]) == ["PPA", "V1"]
    status, _, found = ask("POST", "predict?encoder=gaps", encoded(Image.new("RGB", (9, 9), (200, 30, 90))))
    assert status == 200
    v1, ffa, _ = found["regions"]
    assert ffa["mean"] is None
    assert ffa["percentile"] is None
    assert v1["sd"] == 0


def test_values_that_are_not_z_scored_are_drawn_around_their_mean(server, ask, monkeypatch):
    predictor = ColourPredictor(6, placed=False, units="spike count")
    monkeypatch.setitem(server._encoders, "counts", predictor)
    _, _, view = ask("GET", "encoder?name=counts")
    reference = predictor.predict(pictures(12)).values
    np.testing.assert_allclose(view["centre"], reference.mean(axis=0), rtol=1e-6)
    away = np.abs(reference - reference.mean(axis=0))
    assert view["scale"] == pytest.approx(np.quantile(away, 0.99, axis=1).max(), rel=1e-5)
    v1 = reference[:, [0, 3]].astype(float).mean(axis=1)
    assert view["middle"]["V1"] == pytest.approx(v1.mean(), rel=1e-6)
    assert "from its mean over these pictures" in view["meaning"][1]
    # Of z-scored responses 0 is the mean already.
    assert set(ask("GET", "encoder?name=colours")[2]["centre"]) == {0}


def test_the_card_says_what_a_value_means_and_how_well_voxels_are_predicted(ask):
    _, _, found = ask("GET", "encoder?name=colours")
    assert found["meaning"][0] == "1 is one standard deviation."
    assert "12 reference pictures (made up)" in found["meaning"][1]
    assert found["units"] == "z"
    assert len(found["r"]) == 30
    assert found["regions"] == ["V1", "FFA", "PPA"]
    assert dict(found["facts"])["held out"] == "20 rows, by stimulus"
    # Without places there is no map of the cortex: the page draws regions.
    assert found["maps"] == []
    status, _, found = ask("GET", "encoder?name=colour")
    assert status == 404
    assert "did you mean 'colours'" in found["error"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no picture"),
        (b"these are words", "no picture of a kind that is read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "no picture of a kind"),
        (b"<!doctype html><img src=x onerror=alert(1)>", "no picture of a kind that is read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "no picture of a kind that is read"),
        (encoded(Image.new("RGB", (400, 300), (9, 200, 30)), "JPEG")[:900], "truncated"),
    ],
)
def test_what_is_no_whole_picture_is_refused(ask, content, said):
    status, headers, found = ask("POST", "predict?encoder=colours", content)
    assert status == 400
    assert said in found["error"]
    assert "sandbox" in headers["Content-Security-Policy"]


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(ask):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # A few hundred bytes that would unpack to 180 MB.
    head = struct.pack(">IIBBBBB", 7800, 7700, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 5000)) + chunk(b"IEND", b"")
    )
    status, _, found = ask("POST", "predict?encoder=colours", bomb)
    assert status == 400
    assert "7800 x 7700 pixels" in found["error"]
    assert "50,000,000" in found["error"]
    huge = bomb.replace(chunk(b"IHDR", head), chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)))
    status, _, found = ask("POST", "predict?encoder=colours", huge)
    assert status == 400
    assert "cannot be read" in found["error"]


def test_a_file_of_too_many_bytes_is_refused_before_it_is_decoded(ask):
    status, headers, found = ask("POST", "predict?encoder=colours", bytes(_serve.MOST_BYTES + 1))
    assert status == 413
    assert "at most 10,485,760" in found["error"]
    assert headers["Connection"] == "close"
    status, _, found = ask("POST", "predict?encoder=colours", Transfer_Encoding="chunked")
    assert status == 411
    assert "Content-Length" in found["error"]


def test_only_the_page_that_this_server_sent_may_ask_it(server, ask):
    for token in ("", "x", server.token[:-1], server.token + "x"):
        status, _, found = ask("GET", "", token=token)
        assert status == 403
        assert "lacks its token" in found["error"]
        assert server.token not in found["error"]
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example", "", "[::1]:80"):
        status, _, found = ask("GET", "", Host=host)
        assert status == 403
        assert "is not this machine" in found["error"]
    here = f"127.0.0.1:{server.server_port}"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}):
        status, _, found = ask("GET", "encoder?name=colours", Host=here, **headers)
        assert status == 403
        assert "may not ask" in found["error"]
    assert ask("GET", "encoder?name=colours", Host=here, Origin=f"http://{here}")[0] == 200
    # Through a tunnel the port is another one.
    assert ask("GET", "encoder?name=colours", Host="localhost:9")[0] == 200
    # Who follows a link to the page has its address.
    assert ask("GET", "", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "assets/x.js", "page.js"]
)
def test_no_file_is_served(ask, path):
    status, _, found = ask("GET", path)
    assert status == 404
    assert "nothing here" in found["error"]


def test_other_methods_are_refused(ask):
    for method, path, legal in (("POST", "", "GET"), ("GET", "predict?encoder=colours", "POST"), ("PUT", "", "GET")):
        status, headers, found = ask(method, path, b"body" if method != "GET" else None)
        assert status == 405
        assert headers["Allow"] == legal
        assert legal in found["error"]
    assert ask("DELETE", "encoder?name=colours")[0] == ask("OPTIONS", "")[0] == 405


def test_words_that_are_no_http_and_a_sender_that_stops_do_not_end_it(server, ask, monkeypatch):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as line:
        line.sendall(b"what is this\r\n\r\n")
        assert line.recv(100).startswith(b'{"error":')
    monkeypatch.setattr(_serve, "SECONDS", 0.2)
    monkeypatch.setattr(_serve._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=5) as line:
        said = f"POST /{server.token}/predict?encoder=colours HTTP/1.1\r\nHost: localhost\r\n"
        line.sendall(f"{said}Content-Length: 500\r\n\r\nabc".encode())
        assert b" 408 " in line.recv(100)
    assert ask("GET", "encoder?name=other")[0] == 200


def test_one_prediction_at_a_time(server, ask, monkeypatch):
    monkeypatch.setattr(_serve, "WAIT", 0.05)
    with server.alone():
        status, _, found = ask("GET", "encoder?name=colours")
    assert status == 503
    assert "try again later" in found["error"]
    assert ask("GET", "encoder?name=colours")[0] == 200


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(ConfigError, match=f"port {server.server_port} of 127.0.0.1 cannot be had"):
        _serve.PredictionServer({}, pictures(1), port=server.server_port)


def test_a_folder_of_pictures_takes_the_place_of_simulated_scenes(tmp_path):
    for k in range(3):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / f"{k}.png")
    found, what = _serve._reference(tmp_path)
    assert found.ids.tolist() == ["0.png", "1.png", "2.png"]
    assert str(tmp_path) in what
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        _serve._reference(tmp_path / "none")


def test_the_command_prints_its_address_and_ends_with_ctrl_c(monkeypatch):
    monkeypatch.setattr(_serve, "load_predictor", lambda name, device, cache: ColourPredictor(6, placed=False))
    monkeypatch.setattr(_serve, "REFERENCE", 2)
    opened, lines = [], []
    monkeypatch.setattr(_serve.webbrowser, "open", opened.append)

    def stop(self, poll_interval=0.5):
        raise KeyboardInterrupt

    monkeypatch.setattr(_serve.PredictionServer, "serve_forever", stop)
    serve(["a", "folder/b/"], say=lines.append)
    address = next(line for line in "\n".join(lines).splitlines() if line.startswith("http"))
    assert urlsplit(address).hostname == "127.0.0.1"
    assert opened == [address]
    assert lines[-1] == "ended"
    serve(["a"], browser=False, say=lines.append)
    assert len(opened) == 1


def test_encoders_of_captions_and_without_a_recipe_are_refused():
    predictor = ColourPredictor(6, placed=False)
    predictor.card.reads_pictures, predictor.card.features = False, {"words": {"kind": "captions"}}
    with pytest.raises(DataError, match="mine reads captions, and the page takes pictures"):
        _serve.Served("mine", predictor, pictures(2), "made up")
    predictor.card.features = {}
    with pytest.raises(DataError, match="mine was saved without the recipe"):
        _serve.Served("mine", predictor, pictures(2), "made up")


def test_an_encoder_that_is_not_there_is_told_before_anything_is_served():
    found = CliRunner().invoke(app, ["serve", "--encoder", "world-s9", "--no-browser"])
    assert found.exit_code == 2
    assert "did you mean 'world-s" in found.stderr


@pytest.mark.slow
def test_a_shipped_encoder_is_served_as_it_predicts(server, ask, monkeypatch):
    scenes = simulate_world(6, seed=11)
    predictor = load_predictor("world-s1", cache=False)
    monkeypatch.setitem(server._encoders, "world-s1", predictor)
    monkeypatch.setattr(server, "_pictures", scenes)
    _, _, view = ask("GET", "encoder?name=world-s1")
    assert [one["kind"] for one in view["maps"]][:2] == ["flat", "inflated"]
    assert "simulated" in " ".join(view["meaning"])
    expected = predictor.predict(scenes).values
    for k in range(2):
        _, _, found = ask("POST", "predict?encoder=world-s1", encoded(scenes.image(k)))
        values = np.frombuffer(base64.b64decode(found["values"]), "<f4")
        np.testing.assert_allclose(values, expected[k], rtol=1e-4, atol=1e-5)
