"""Folders that `cavmae report` reads, and what its pages may hold."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from cavmae.tools.report import main
from cavmae.tools.reporting.sources import Separation, sources_of

RECORD = {
    "schema": 1, "source": "film.mp4", "model": "m", "seconds": 1.0, "gain": 1.0,
    "people": [{"number": 1, "voice": "person-1.wav", "mask": None, "state": "speaking",
                "level_db": -20.0}],
    "residual": "residual.wav", "overlay": "overlay.mp4",
}  # fmt: skip
MEASURES = {
    "model": "m", "list": "l.jsonl", "cue": "none", "scenes": {"model": [1, 2]},
    "summary": {"model": {"iou": 0.81}, "frames_blanked": {"iou": None}},
}  # fmt: skip

PREDICTION = {
    "schema": 1, "source": "street.mp4", "model": "m", "seconds": 2.5, "window": 1.0, "hop": 1.0,
    "conditions": {"mode": "missing_audio", "frames": "10, averaged", "weights": "not averaged"},
    "remarks": ["it has no audio: predicted from its frames (missing_audio)"],
    "timeline": [{"start": n, "end": min(n + 1.0, 2.5), "labels": []} for n in (0.0, 1.0, 2.0)],
    "labels": [
        {"name": "_dog <b>", "spans": [[0.0, 1.0], [2.0, 2.5]], "probs": [0.9, 0.2, 0.8]},
        {"name": "rain", "spans": [], "probs": [0.1, 0.3, 0.05]},
    ],
}  # fmt: skip
EVENT_MEASURES = {
    "model": "m/average",
    "figures": {
        name: {"value": value, "mode": "audio_only", "frames": "none", "weights": "as published"}
        for name, value in (("mean_ap", 0.5125), ("auc", 0.75), ("d_prime", None),
                            ("accuracy", 0.25))
    },
    "classes": [{"name": "dog", "clips": 3, "ap": 0.625, "auc": None}],
}  # fmt: skip


def wave(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.1, 0.1, 16_000).astype(np.float32)


def write(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def page_of(tmp_path: Path, *folders: Path) -> str:
    out = tmp_path / "page.html"
    assert main([*map(str, folders), "--out", str(out)]) == 0
    return out.read_text()


def embedded(text: str) -> set[bytes]:
    """All files embedded in a page."""
    return {base64.b64decode(data) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", text)}


class Markup(HTMLParser):
    """Tags, attributes and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.names |= set(values)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "poster")]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""


def harmless(text: str) -> None:
    markup = Markup(text)
    assert not markup.tags & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [name for name in markup.names if name.startswith("on") or name == "style"]
    assert all(address.startswith(("data:", "#")) for address in markup.addresses)
    assert text.count("</style>") == 1
    assert "default-src 'none'" in markup.policy
    assert "unsafe" not in markup.policy
    assert "script-src" not in markup.policy


def only(folder: Path) -> Separation:
    (separation,) = sources_of([str(folder)])
    assert isinstance(separation, Separation)
    return separation
