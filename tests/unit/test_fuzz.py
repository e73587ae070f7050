"""Every parser of a user's or a server's file either works or ends in exactly one VapError of one line.

The examples are the same in each run. `VAP_FUZZ=100 pytest tests/unit/test_fuzz.py` tries a hundred times
as many; what once crashed stands as an explicit example.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from toy import said_by

from vap.captioning import questions
from vap.captioning.replies import ImageFailed, Key, Reply, meaning
from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.common.yaml_files import read_yaml
from vap.datasets.archives import Tree
from vap.datasets.base import LeftOut
from vap.datasets.colonoscopy_parts import _voc_label
from vap.datasets.isic import in_isic2018
from vap.datasets.phantom import load_spec
from vap.datasets.tables import read_list, read_table
from vap.params import parse
from vap.sampling.bundle import read_bundle

FACTOR = int(os.environ.get("VAP_FUZZ", "1"))
fuzz = settings(
    max_examples=60 * FACTOR,
    derandomize=FACTOR == 1,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LAUGHS = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k"))
)
DEEP = b"[" * 100_000
SCALAR = st.sampled_from(
    [
        b"seed",
        b"1",
        b"!!int ''",
        b"!!bool x",
        b"!!timestamp x",
        b"2001-13-01",
        b"&a",
        b"*a",
        b"<<",
        b"~",
        b"\xff",
    ]
)
YAML = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(SCALAR, st.sampled_from([b": ", b"\n", b"- ", b"{", b"}", b"[", b"]", b"? "])))
    .map(b"".join),
)  # fmt: skip


def holds(work: Callable[[], object]) -> None:
    """`work` is done, or ends in one line."""
    said = said_by(work)
    assert len(said) < 20_000


def within(data: bytes, name: str, work: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        holds(lambda: work(path))


@fuzz
@given(YAML)
@example(b"a: !!int ''")
@example(b"a: !!bool x")
@example(b"a: !!timestamp x")
@example(b"a: 2001-13-01")
@example(b"&a [*a]")
@example(DEEP)
@example(LAUGHS)
@example(b"seed: &a [1]\ndatasets: *a")
def test_settings_questions_and_phantoms(data: bytes) -> None:
    within(data, "x.yaml", lambda path: parse(read_yaml(path, "the settings", "write it")))
    within(data, "phantom.yaml", load_spec)
    before = questions.FOLDER
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "skin.yaml").write_bytes(data)
        questions.FOLDER = Path(folder)
        try:
            holds(lambda: questions.load_questions("skin", 1))
        finally:
            questions.FOLDER = before


CSV = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.sampled_from([b"image", b"lesion", b",", b"\n", b"\r", b'"', b"\0", b"a/b", b"x" * 2_000])
    ).map(lambda parts: b"image,lesion\n" + b"".join(parts)),
)


@fuzz
@given(CSV)
@example(b"image,lesion\n" + b"x" * 140_000 + b"\0,y")
def test_tables_and_lists(data: bytes) -> None:
    within(data, "x.csv", lambda path: list(read_table(path, ["image", "lesion"], "fetch it")))
    within(data, "x.txt", lambda path: read_list(path, "fetch it"))


@fuzz
@given(st.text(max_size=20))
@example("ISIC_" + "1" * 5000)
def test_an_id_of_isic(name: str) -> None:
    in_isic2018(name)


BOMB = '<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;">]><a><object><name>&d;</name></object></a>'


@fuzz
@given(
    st.one_of(
        st.binary(max_size=200), st.text(alphabet="<>/&;object name![]?='\"", max_size=200).map(str.encode)
    )
)
@example(BOMB.encode())
@example(BOMB.encode("utf-16"))
@example((b'<?xml version="1.0" encoding="cp037"?>') + BOMB.encode("cp037"))
@example(b'<?xml version="1.0" encoding="no-such"?><a/>')
@example(b'<?xml version="1.0" encoding="shift_jis"?><a/>')
def test_annotations(data: bytes) -> None:
    within(data, "x.xml", lambda path: _voc_label(path, path))


def test_entities_are_refused_in_any_encoding(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-16"):
        path = tmp_path / "x.xml"
        path.write_bytes(BOMB.encode(encoding))
        try:
            _voc_label(path, path)
        except VapError as error:
            assert "a document type" in str(error)  # noqa: PT017
        else:
            raise AssertionError(encoding)


BODY = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=20),
        st.sampled_from(["429", "²", "9" * 5000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["error", "code", "status", "message", "choices", "content", "text", "finish_reason", "usage"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


def reply(body: bytes, status: int = 200, after: str = "") -> None:
    try:
        holds(lambda: meaning(Reply(status, {"Retry-After": after}, body), "http://127.0.0.1/v1", Key()))
    except ImageFailed as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


@fuzz
@given(
    BODY.map(lambda body: json.dumps(body).encode()),
    st.sampled_from([200, 400, 429, 500]),
    st.text(max_size=12),
)
@example(DEEP, 200, "")
@example(DEEP, 500, "²")
@example(b'{"error": {"code": "\xc2\xb2"}}', 200, "")
@example(b'{"choices": [{"message": {"content": [{"text": 1}, 2]}}]}', 200, "")
def test_answers_of_a_server(body: bytes, status: int, after: str) -> None:
    reply(body, status, after)


def zipped(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a/x.csv", b"image,lesion\n" + b"a,b\n" * 50)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a/ä" + "x" * 120 + ".csv")
        info.size = 40
        archive.addfile(info, io.BytesIO(b"image,lesion\n" + b"a,b\n" * 10))
    return buffer.getvalue()


WHOLE = [
    ("x.zip", zipped()),
    ("x.zip", zipped(zipfile.ZIP_LZMA)),
    ("x.zip", zipped(zipfile.ZIP_BZIP2)),
    ("x.tar", tarred()),
]


@fuzz
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    st.integers(0, 2**16),
)
def test_archives_with_other_bytes(whole: tuple[str, bytes], flips: list[tuple[int, int]], cut: int) -> None:
    name, data = whole[0], bytearray(whole[1])
    for place, value in flips:
        data[place % len(data)] = value
    del data[len(data) - cut % 64 :]

    def work(path: Path) -> None:
        tree = Tree(path.parent, LeftOut(skip=True).member)
        for file in tree.files.values():
            holds(lambda file=file: list(read_table(file, ["image", "lesion"], "fetch it")))

    within(bytes(data), name, work)


@fuzz
@given(st.one_of(st.binary(max_size=200), BODY.map(lambda body: json.dumps({"bundle": body}).encode())))
@example(DEEP)
@example(b'{"bundle": {"format": 1, "files": {"model.safetensors": 3}}, "method": "uvit"}')
@example(b'{"bundle": {"format": 1, "files": {"model.safetensors": "x", "../x": "y"}}, "method": "uvit"}')
@example(b'{"bundle": {"format": 1, "files": {}}, "method": "/etc/x"}')
def test_a_bundle(data: bytes) -> None:
    within(data, "config.json", lambda path: read_bundle(path.parent))


@fuzz
@given(st.binary(max_size=300))
@example(b"ARROW1\0\0" + b"\xff" * 64 + b"ARROW1")
def test_what_is_no_arrow_file(data: bytes) -> None:
    within(data, "x.arrow", lambda path: ArrowFile(path, "bank"))
