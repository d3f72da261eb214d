"""`lfmim serve` refuses before it starts anything."""

from __future__ import annotations

import socket
import sys

import pytest

from lfmim.cli.serve import main
from lfmim.schema import InputError
from lfmim.storage import exclusive


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "give --token_file"),
        (["--port", "0"], "--port 0: must lie in"),
        (["--token_file", "none"], "none: cannot be read"),
        (["--workers", "0"], "must be at least 1"),
        (["--decode_workers", "0"], "must be at least 1"),
        (["--lifetime_h", "0"], "lifetime_h: 0.0 must be positive"),
        (["--abstain", "2"], "--abstain 2.0: must lie in"),
        (["--model", "[builtin:face,builtin:face]"], "model: name each once"),
        (["--storage", "s3://bucket/runs"], "--storage"),
    ],
)
def test_what_no_service_can_be_is_one_message(options, message, tmp_path, monkeypatch):
    pytest.importorskip("python_multipart", reason="needs the extra serve")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(["--model", "builtin:face", *options])
    assert list(tmp_path.iterdir()) == []


def test_an_address_or_a_folder_that_is_taken(tmp_path, monkeypatch):
    pytest.importorskip("python_multipart", reason="needs the extra serve")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(InputError, match=f"--port {port}: cannot be answered at"):
            main(["--model", "builtin:face", "--port", port])
    with (
        exclusive(tmp_path / "runs" / "service"),
        pytest.raises(InputError, match="another run is writing into this service's folder"),
    ):
        main(["--model", "builtin:face", "--port", port])


def test_without_its_extra_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in [n for n in sys.modules if n.startswith("feature_service.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(InputError, match=r"pip install 'lfmim-on-ray\[serve\]'"):
        main(["--model", "builtin:face"])
